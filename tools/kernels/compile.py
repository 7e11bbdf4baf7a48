"""Compiles kernels for a GPU that need not be present, and reads the resources from the assembler's report."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.cost import cost_of_a_value

SHARED_MEMORY_LIMIT_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""Largest dynamic shared memory of one block, by compute capability (CUDA programming guide)."""


_TYPES = {
    "*bf16": ("q", "x", "out", "total_out", "variance", "cos", "sin"),
    "*fp16": ("typed", "synthesis"),
    "*fp32": (
        *("lse", "total_lse", "alpha", "square_step_size", "short_step_sizes", "inverse_scales", "mean"),
        *("levels", "cosines", "analysis", "deviation", "normal", "units", "peaks", "weights"),
    ),
    "*u8": ("records", "codes", "bad"),
    "*i32": ("pages", "segments", "ranges", "blocks", "tables", "words", "first_bits", "widths", "width"),
    "*i64": ("rank", "direction", "out_heads"),
    "fp32": ("scale",),
}
ARGUMENT_TYPES = {name: kind for kind, names in _TYPES.items() for name in names}
"""Types of arguments that are not constants, in a BF16 model; all others are 32-bit integers."""


VALUE_BYTES = {"*fp32": 4, "*bf16": 2, "*fp16": 2, "*fp8e4nv": 1}


@dataclass(frozen=True)
class Launch:
    """One configuration of a kernel."""

    label: str
    kernel: Any
    types: Mapping[str, str]
    """Type of every argument that is not a constant, as Triton writes it: "*bf16", "i32", "fp32"."""
    constants: Mapping[str, Any]
    num_warps: int
    num_stages: int = 1
    values: int = 0
    """Decoded values that a program writes, padding left out; 0 for kernels that decode nothing."""
    capability: int = 0
    """The least compute capability that can run it."""

    @staticmethod
    def of(
        label: str,
        kernel: Any,
        constants: Mapping[str, Any],
        num_warps: int,
        num_stages: int = 1,
        *,
        values: int = 0,
        capability: int = 0,
        **types: str,
    ) -> Launch:
        """`types`: exceptions from `ARGUMENT_TYPES`."""
        names = [name for name in kernel.arg_names if name not in constants]
        chosen = {name: {**ARGUMENT_TYPES, **types}.get(name, "i32") for name in names}
        return Launch(label, kernel, chosen, constants, num_warps, num_stages, values, capability)


@dataclass(frozen=True)
class Resources:
    """Resources of one compiled kernel."""

    label: str
    kernel: str
    capability: int
    registers: int
    """Per thread."""
    spilled_bytes: int
    """Per thread: stores and loads of registers that did not fit."""
    shared_bytes: int
    """Per block."""
    num_warps: int
    cost: Mapping[str, float]
    """Instructions per decoded value, by class (cost.py); empty for kernels that decode nothing."""


def compile_launch(launch: Launch, capability: int) -> Resources:
    """Compiles for compute capability 80 or 90; needs no device."""
    kernel = launch.kernel
    signature = {name: launch.types.get(name, "constexpr") for name in kernel.arg_names}
    source = ASTSource(kernel, signature, dict(launch.constants), _alignments(kernel, launch.types))
    options = {"num_warps": launch.num_warps, "num_stages": launch.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    registers, spilled_bytes = _assemble(compiled.asm["ptx"], capability)
    cost = {}
    if launch.values:
        value_bytes = VALUE_BYTES[launch.types["out"]]
        cost = cost_of_a_value(compiled.asm["cubin"], launch.values, 32 * launch.num_warps, value_bytes)
    return Resources(
        launch.label,
        kernel.__name__,
        capability,
        registers,
        spilled_bytes,
        compiled.metadata.shared,
        launch.num_warps,
        cost,
    )


def _alignments(kernel: Any, types: Mapping[str, str]) -> dict[tuple[int, ...], list[list[Any]]]:
    """Pointers and strides are multiples of 16, except arguments marked do_not_specialize."""
    aligned = [
        index
        for index, parameter in enumerate(kernel.params)
        if parameter.name in types
        and not (parameter.do_not_specialize or parameter.do_not_specialize_on_alignment)
        and (types[parameter.name].startswith("*") or parameter.name.endswith("_stride"))
    ]
    return {(index,): [["tt.divisibility", 16]] for index in aligned}


def _assemble(ptx: str, capability: int) -> tuple[int, int]:
    """(registers, spilled bytes) per thread, from the assembler's report."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        architecture = f"sm_{capability}" + ("a" if capability == 90 else "")
        report = subprocess.run(
            [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name={architecture}", str(source), "-o", f"{source}.cubin"],
            check=True,
            capture_output=True,
            text=True,
        ).stderr
    registers = re.search(r"Used (\d+) registers", report)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    assert registers is not None and spills, report
    return int(registers[1]), sum(map(int, spills))
