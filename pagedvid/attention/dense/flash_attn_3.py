"""FlashAttention 3 for Hopper: module `flash_attn_interface`, built from flash-attention's folder hopper/."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.ragged import DenseAttention, Ragged, device_reasons, head_dim_reasons, missing

MAX_HEAD_DIM = 256


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why this library cannot be used here; empty when it can."""
    reasons = missing("flash_attn_interface", "built from the folder hopper of flash-attention")
    reasons += device_reasons(device, dtype, (9, 0), highest=9)
    reasons += head_dim_reasons(head_dim, MAX_HEAD_DIM)
    return reasons


class FlashAttention3(DenseAttention):
    """`flash_attn_varlen_func` of flash-attn 3."""

    name = "flash-attn-3"

    def __init__(self) -> None:
        from flash_attn_interface import flash_attn_varlen_func

        self._attend = flash_attn_varlen_func
        # Releases before this argument existed always return the lse.
        asks = "return_attn_probs" in inspect.signature(flash_attn_varlen_func).parameters
        self._options: dict[str, Any] = {"return_attn_probs": True} if asks else {}

    @override
    def __call__(
        self, q_THD: Tensor, k_NHD: Tensor, v_NHD: Tensor, ragged: Ragged, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse, *_ = self._attend(
            q_THD,
            k_NHD,
            v_NHD,
            ragged.query_starts,
            ragged.key_starts,
            ragged.max_queries,
            ragged.max_keys,
            softmax_scale=scale,
            causal=False,
            **self._options,
        )
        return ragged.canonical(out, lse)
