"""Kernels that bring a step's queries, keys and values into place, and that join its partials."""

from __future__ import annotations

from collections.abc import Iterator

from kernels.channel import FLOAT32_ANGLES, HEAD_DIM
from kernels.compile import Launch
from pagedvid.attention.kernels import merge
from pagedvid.attention.kernels.merge import merge_constants, merge_kernel
from pagedvid.rotary import kernels as rotary_kernels
from pagedvid.rotary.kernels import arrange_constants, arrange_kernel

_MERGE_TYPES = {
    **dict.fromkeys(("own", "others", "out", "q"), "*bf16"),
    **dict.fromkeys(("others_lse", "out_lse", "square"), "*fp32"),
    **dict.fromkeys(("variants", "pairs"), "*i32"),
}
_ARRANGE_TYPES = {
    **dict.fromkeys(("q", "k", "v", "q_out", "k_out", "v_out"), "*bf16"),
    "starts": "*i32",
    **FLOAT32_ANGLES,
}


def merge_launches() -> Iterator[Launch]:
    """Merging with and without a correction; by query heads per KV head, and where queries are components of axes."""
    cases = (
        ("corrected", True, 1, "*bf16"),
        ("corrected, groups of 3", True, 3, "*bf16"),
        ("corrected, along axes", True, 1, "*fp32"),
        ("plain", False, 1, "*bf16"),
    )
    for label, bias, group, query_type in cases:
        constants = merge_constants(HEAD_DIM, group, bias=bias)
        types = {**_MERGE_TYPES, "q": query_type}
        yield Launch.of(label, merge_kernel, constants, merge.NUM_WARPS, **types)


def arrange_launches() -> Iterator[Launch]:
    """Queries, keys and values of a step, by the layout of pairs."""
    for pairs, rotate in (("half", True), ("interleaved", True), ("half", False)):
        constants = arrange_constants(HEAD_DIM, pairs, rotate=rotate)
        label = f"{pairs} pairs" + ("" if rotate else ", copied")
        yield Launch.of(label, arrange_kernel, constants, rotary_kernels.NUM_WARPS, **_ARRANGE_TYPES)
