"""FlashAttention 4, written in CuTe DSL: module `flash_attn.cute`. PyPI: flash-attn-4."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.base import DenseAttention, device_reasons, head_dim_reasons, missing

MAX_HEAD_DIM = 128
MODULE, DISTRIBUTION = "flash_attn.cute", "flash-attn-4"
ARGUMENTS = ("softmax_scale", "causal", "return_lse")


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why this library cannot be used here; empty when it can."""
    reasons = device_reasons(device, dtype, (9, 0)) + head_dim_reasons(head_dim, MAX_HEAD_DIM)
    if reasons:
        return reasons
    try:
        # flash-attn 2.8.3 also brings a folder of this name, which is older and needs what it does not install.
        version(DISTRIBUTION)
    except PackageNotFoundError:
        return [f"{DISTRIBUTION} is not installed (pip install {DISTRIBUTION})"]
    return missing(MODULE, "flash_attn_func", ARGUMENTS, f"pip install {DISTRIBUTION}")


class FlashAttention4(DenseAttention):
    """`flash_attn_func` of flash-attn 4."""

    name = "flash-attn-4"
    head_major = False

    def __init__(self) -> None:
        from flash_attn.cute import flash_attn_func

        self._attend = flash_attn_func

    @override
    def __call__(self, q_ETHD: Tensor, k_EnHD: Tensor, v_EnHD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        out, lse_EHT, *_ = self._attend(q_ETHD, k_EnHD, v_EnHD, softmax_scale=scale, causal=False, return_lse=True)
        return out, lse_EHT.transpose(1, 2)
