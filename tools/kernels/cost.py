"""What decoding a value costs: instructions of each class, counted in the disassembly of a compiled kernel.

The count is static. A kernel is straight code around at most one loop that writes tokens. With T threads, V values that
a program decodes, and v values that one thread writes in one run of the loop, the loop runs ceil(V / (T * v)) times, so
that a value costs

    (instructions outside the loop + runs * instructions inside) * T / V

Without a loop all instructions count once. All branches count as taken and all predicates as true, so the rows at the
end of a chunk that are not written cost as much as those that are. What the count does not say: which instructions wait
for memory or for each other, and that the pipes differ in speed (tensor cores and MUFU are slower, ALU is half as fast
as FMA on compute capability 9.0).
"""

from __future__ import annotations

import math
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import triton

CLASSES = {
    "tensor": r"HMMA|HGMMA|IMMA|QGMMA|IGMMA",
    "mufu": r"MUFU|I2F|F2I|F2F",
    "fma": r"FFMA|FMUL|FADD|HFMA|HMUL|HADD|IMAD|IDP|F2?FMA",
    "load": r"LDG|LDL|LD|LDC|LDCU|LDGSTS",
    "store": r"STG|STL|ST|RED|ATOM|ATOMG",
    "shared": r"LDS|LDSM|STS|STSM|SHFL|ATOMS|LDMATRIX|MOVM",
    "other": r"BAR|BRA|BSSY|BSYNC|EXIT|WARPSYNC|DEPBAR|LDGDEPBAR|MEMBAR|S2R|CS2R|S2UR|R2UR|WARPGROUP|VOTE|U[A-Z]\w*",
}
"""Names of instructions up to the first dot; every other name is counted as "alu"."""
WRITTEN_BYTES = {"128": 16, "64": 8, "U16": 2, "U8": 1}
"""Bytes that a thread writes, by the suffix of the instruction; 4 for others."""
_CLASS_OF = {name: re.compile(names) for name, names in CLASSES.items()}
_LINE = re.compile(r"\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?PT?\d*\s+)?(?P<name>[A-Z][\w.]*)(?P<operands>[^;]*);")


@dataclass(frozen=True)
class Instruction:
    """One line of the disassembly."""

    name: str
    """With suffixes, as in LDG.E.128."""
    operands: str

    @property
    def kind(self) -> str:
        """Its class, a key of `CLASSES` or "alu"."""
        plain = self.name.split(".")[0]
        return next((kind for kind, names in _CLASS_OF.items() if names.fullmatch(plain)), "alu")

    @property
    def written_bytes(self) -> int:
        """Bytes of global memory that a thread writes."""
        first, *suffixes = self.name.split(".")
        return next((WRITTEN_BYTES[each] for each in suffixes if each in WRITTEN_BYTES), 4) * (first == "STG")


def cost_of_a_value(cubin: bytes, values: int, num_threads: int, value_bytes: int) -> dict[str, float]:
    """Instructions of each class that a thread executes for each decoded value.

    `values`: what a program decodes. Raises ValueError for a kernel with more loops than the count can tell apart.
    """
    code, loops = read(disassembled(cubin))
    writing = [loop for loop in loops if any(code[number].written_bytes for number in loop)]
    if len(loops) > len(writing) or len(writing) > 1:
        raise ValueError(f"{len(loops)} loops, {len(writing)} of which write tokens: how often they run is unknown")
    loop = writing[0] if writing else range(0)
    inside = [code[number] for number in loop]
    outside = [each for number, each in enumerate(code) if number not in loop]
    runs = 0
    if inside:
        of_a_run = sum(each.written_bytes for each in inside) / value_bytes * num_threads
        runs = math.ceil(values / of_a_run)
    counts = Counter(each.kind for each in outside)
    for each in inside:
        counts[each.kind] += runs
    return {kind: counts[kind] * num_threads / values for kind in ("alu", *CLASSES)}


def disassembled(cubin: bytes) -> str:
    """The machine code as text, by the disassembler of the Triton wheel."""
    program = Path(triton.__path__[0]) / "backends/nvidia/bin/nvdisasm"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.cubin"
        source.write_bytes(cubin)
        return subprocess.run([program, "-c", source], check=True, capture_output=True, text=True).stdout


def read(text: str) -> tuple[list[Instruction], list[range]]:
    """(instructions, loops as ranges of their numbers), without what follows the last exit."""
    code: list[Instruction] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if found := _LINE.match(line):
            if found["name"] != "NOP":
                code.append(Instruction(found["name"], found["operands"]))
        elif line.startswith(".L_"):
            labels[line.rstrip(": ")] = len(code)
    last_exit = max(number for number, each in enumerate(code) if each.name.startswith("EXIT"))
    return code[: last_exit + 1], list(_loops(code[: last_exit + 1], labels))


def _loops(code: Sequence[Instruction], labels: dict[str, int]) -> Iterator[range]:
    """Branches back to an earlier instruction."""
    for number, each in enumerate(code):
        target = re.search(r"`\((\.L_\w+)\)", each.operands)
        if each.name.startswith("BRA") and target and labels[target[1]] < number:
            yield range(labels[target[1]], number + 1)
