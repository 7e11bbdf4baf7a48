"""Kernels of merging partials and of rotary embedding."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from kernels.channel import FLOAT32_ANGLES, HEAD_DIM
from kernels.compile import Launch
from pagedvid.attention.kernels import merge
from pagedvid.attention.kernels.merge import corrected_merge_kernel, merge_constants
from pagedvid.correction.formula import QuantError
from pagedvid.rotary import kernels as rotary_kernels
from pagedvid.rotary.kernels import rotate_constants, rotate_kernel

ONE = torch.ones(1, dtype=torch.float32)


def merge_launches() -> Iterator[Launch]:
    """Merging with and without a correction."""
    quant_error = QuantError(ONE, is_variance=False, rotates=True, alpha=ONE)
    for label, corrected in (("corrected", quant_error), ("plain", None)):
        constants = merge_constants(HEAD_DIM, 1, corrected)
        yield Launch.of(label, corrected_merge_kernel, constants, merge.NUM_WARPS, total_out="*fp32")


def rotate_launches() -> Iterator[Launch]:
    """Rotation of queries and current keys, by the layout of pairs."""
    for pairs in ("half", "interleaved"):
        constants = rotate_constants(HEAD_DIM, pairs, rotate=True)
        yield Launch.of(f"{pairs} pairs", rotate_kernel, constants, rotary_kernels.NUM_WARPS, **FLOAT32_ANGLES)
