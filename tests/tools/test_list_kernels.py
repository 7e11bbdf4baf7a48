"""Every kernel compiles for compute capability 8.0 and 9.0, and fits into shared memory and registers; needs no device.

Only the main configuration of each kernel: the whole list takes minutes. The compiler runs in a process of its own,
because Triton's interpreter may have replaced the kernels of this one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kernels.compile import SHARED_MEMORY_LIMIT_BYTES

ROOT = Path(__file__).parents[2]
MOST_SPILLED_BYTES = {80: 0, 90: 0}
"""Per thread, in each kernel's main configuration."""


@pytest.fixture(scope="module")
def resources() -> list[dict[str, Any]]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "tools/list_kernels.py", "--json", "--main"]
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_every_kernel_compiles_for_both(resources: list[dict[str, Any]]) -> None:
    kernels = Counter(each["kernel"] for each in resources)
    files = (ROOT / "pagedvid").rglob("*.py")
    defined = {
        line.split()[1].split("(")[0]
        for file in files
        for line in file.read_text().splitlines()
        if line.startswith("def ") and line.split("(")[0].endswith("_kernel")
    }
    assert set(kernels) == defined
    assert all(count % 2 == 0 for count in kernels.values())


def test_shared_memory_fits(resources: list[dict[str, Any]]) -> None:
    for each in resources:
        assert each["shared_bytes"] <= SHARED_MEMORY_LIMIT_BYTES[each["capability"]], each


def test_registers_are_not_spilled(resources: list[dict[str, Any]]) -> None:
    for each in resources:
        assert each["registers"] <= 255
        assert each["spilled_bytes"] <= MOST_SPILLED_BYTES[each["capability"]], each
