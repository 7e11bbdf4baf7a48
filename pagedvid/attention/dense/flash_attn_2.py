"""flash-attn 2.x: `flash_attn_func`. PyPI: flash-attn."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.base import DenseAttention, device_reasons, head_dim_reasons, missing

MAX_HEAD_DIM = 256
ARGUMENTS = ("softmax_scale", "causal", "return_attn_probs")


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why this library cannot be used here; empty when it can."""
    reasons = device_reasons(device, dtype, (8, 0)) + head_dim_reasons(head_dim, MAX_HEAD_DIM)
    # The distribution flash-attn-4 alone installs a package of this name without this function in it.
    return reasons or missing("flash_attn", "flash_attn_func", ARGUMENTS, "pip install flash-attn")


class FlashAttention2(DenseAttention):
    """`flash_attn_func` of flash-attn 2."""

    name = "flash-attn-2"
    head_major = False

    def __init__(self) -> None:
        from flash_attn import flash_attn_func

        self._attend = flash_attn_func

    @override
    def __call__(self, q_ETHD: Tensor, k_EnHD: Tensor, v_EnHD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        # `return_attn_probs` returns the lse; no probabilities are made without dropout.
        out, lse_EHT, *_ = self._attend(
            q_ETHD, k_EnHD, v_EnHD, softmax_scale=scale, causal=False, return_attn_probs=True
        )
        return out, lse_EHT.transpose(1, 2)
