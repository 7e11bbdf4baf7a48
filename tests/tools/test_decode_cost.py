"""Decoding stays as cheap as it is: instructions per value, in what the compiler makes for compute capability 9.0.

A change that makes a kernel dearer is seen here without a device; one that makes it cheaper should lower the numbers.
How they are counted: tools/kernels/cost.py. The compiler runs in a process of its own (see test_list_kernels.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from kernels.cost import read

ROOT = Path(__file__).parents[2]
INSTRUCTIONS = {
    "int2, rotated": 9.8,
    "int2": 5.8,
    "int2, rotated, float8": 11.1,
    "bf16, rotated": 6.7,
    "klt1.5, 3 frames, rotated": 29.4,
    "token2-g64, rotated": 11.0,
}
"""Per decoded value."""
SPARE = 0.04


@pytest.mark.skipif(triton.__version__ != "3.7.1", reason="the counts are those of Triton 3.7.1 and its assembler")
def test_instructions_per_decoded_value() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment["PYTHONPATH"] = str(ROOT)
    command = [sys.executable, "tools/list_kernels.py", "--json", "--capability", "90", "--labels", *INSTRUCTIONS]
    done = subprocess.run([*command, "--cost"], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = {each["label"]: sum(each["cost"].values()) for each in json.loads(done.stdout)}
    assert found == pytest.approx(INSTRUCTIONS, rel=SPARE)


DISASSEMBLY = """
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/              @!P0 EXIT ;
.L_x_0:
        /*0020*/                   FFMA R2, R3, R4, R5 ;
        /*0030*/              @P1  STG.E.128 desc[UR4][R8.64], R4 ;
        /*0040*/                   STG.E.U16 desc[UR4][R8.64+0x10], R4 ;
        /*0050*/              @P2  BRA `(.L_x_0) ;
        /*0060*/                   NOP ;
        /*0070*/                   EXIT ;
.L_x_1:
        /*0080*/                   BRA `(.L_x_1);
"""


def test_loops_and_written_bytes_are_read_from_the_disassembly() -> None:
    code, loops = read(DISASSEMBLY)
    assert [each.kind for each in code] == ["load", "other", "fma", "store", "store", "other", "other"]
    assert loops == [range(2, 6)]
    assert [each.written_bytes for each in code] == [0, 0, 0, 16, 2, 0, 0]
