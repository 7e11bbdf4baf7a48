"""How many kernels one layer launches, counted without a device: a bound that only falls."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_launches_of_a_layer(tmp_path: Path) -> None:
    """4 where nothing is corrected (arrange, decode keys, decode values, one dense call); two more where chunks are (a
    dense call over them, the merge); with many small streams one more, which repeats their queries."""
    settings = ["--codecs", "int2", "klt1.5/klt3", "bf16", "--streams", "1", "4", "--chunks", "6", "--repetitions", "2"]
    command = [sys.executable, "benchmarks/host_cost.py", *settings, "--out", str(tmp_path / "x.json")]
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)  # a process of its own: the interpreter has replaced the kernels of this one
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path / "x.json").read_text())["results"]["rows"]
    launches = {(row["codec"], row["streams"]): row["launches"] for row in rows}
    assert launches == {
        ("int2", 1): 6,
        ("int2", 4): 7,
        ("klt1.5/klt3", 1): 4,
        ("klt1.5/klt3", 4): 4,
        ("bf16", 1): 4,
        ("bf16", 4): 4,
    }
