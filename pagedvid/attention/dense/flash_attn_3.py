"""FlashAttention 3 for Hopper: module `flash_attn_interface`, built from flash-attention's folder hopper/."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.base import DenseAttention, device_reasons, head_dim_reasons, missing

MAX_HEAD_DIM = 256
MODULE, INSTALL = "flash_attn_interface", "built from the folder hopper of flash-attention"
ARGUMENTS = ("softmax_scale", "causal")


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why this library cannot be used here; empty when it can."""
    reasons = device_reasons(device, dtype, (9, 0), highest=9) + head_dim_reasons(head_dim, MAX_HEAD_DIM)
    return reasons or missing(MODULE, "flash_attn_func", ARGUMENTS, INSTALL)


class FlashAttention3(DenseAttention):
    """`flash_attn_func` of flash-attn 3."""

    name = "flash-attn-3"
    head_major = False

    def __init__(self) -> None:
        from flash_attn_interface import flash_attn_func

        self._attend = flash_attn_func
        # Releases before this argument existed always return the lse.
        asks = "return_attn_probs" in inspect.signature(flash_attn_func).parameters
        self._options: dict[str, Any] = {"return_attn_probs": True} if asks else {}

    @override
    def __call__(self, q_ETHD: Tensor, k_EnHD: Tensor, v_EnHD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        out, lse_EHT, *_ = self._attend(q_ETHD, k_EnHD, v_EnHD, softmax_scale=scale, causal=False, **self._options)
        return out, lse_EHT.transpose(1, 2)
