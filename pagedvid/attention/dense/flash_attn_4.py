"""FlashAttention 4, written in CuTe DSL: module `flash_attn.cute`. PyPI: flash-attn-4."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.ragged import DenseAttention, Ragged, device_reasons, head_dim_reasons, missing

MAX_HEAD_DIM = 128


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why this library cannot be used here; empty when it can."""
    reasons = missing("flash_attn.cute", "pip install flash-attn-4") + device_reasons(device, dtype, (9, 0))
    reasons += head_dim_reasons(head_dim, MAX_HEAD_DIM)
    return reasons


class FlashAttention4(DenseAttention):
    """`flash_attn_varlen_func` of flash-attn 4."""

    name = "flash-attn-4"

    def __init__(self) -> None:
        from flash_attn.cute import flash_attn_varlen_func

        self._attend = flash_attn_varlen_func

    @override
    def __call__(
        self, q_THD: Tensor, k_NHD: Tensor, v_NHD: Tensor, ragged: Ragged, scale: float
    ) -> tuple[Tensor, Tensor]:
        out, lse, *_ = self._attend(
            q_THD,
            k_NHD,
            v_NHD,
            cu_seqlens_q=ragged.query_starts,
            cu_seqlens_k=ragged.key_starts,
            max_seqlen_q=ragged.max_queries,
            max_seqlen_k=ragged.max_keys,
            softmax_scale=scale,
            causal=False,
            return_lse=True,
        )
        return ragged.canonical(out, lse)
