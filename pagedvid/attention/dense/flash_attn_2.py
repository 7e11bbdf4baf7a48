"""flash-attn 2.x: `flash_attn_varlen_func`. PyPI: flash-attn."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.ragged import DenseAttention, Ragged, device_reasons, head_dim_reasons, missing

MAX_HEAD_DIM = 256
OLDEST = (2, 6)
"""From this version on, lse is [H, T] without padding."""


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why this library cannot be used here; empty when it can."""
    reasons = missing("flash_attn", "pip install flash-attn") + device_reasons(device, dtype, (8, 0))
    reasons += head_dim_reasons(head_dim, MAX_HEAD_DIM)
    if not reasons:
        import flash_attn

        # The package `flash-attn-4` alone installs a folder of this name that lacks version 2.
        version = getattr(flash_attn, "__version__", "0.0")
        if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            reasons.append(f"flash-attn {version}; it needs {OLDEST[0]}.{OLDEST[1]} or newer")
    return reasons


class FlashAttention2(DenseAttention):
    """`flash_attn_varlen_func` of flash-attn 2."""

    name = "flash-attn-2"

    def __init__(self) -> None:
        from flash_attn import flash_attn_varlen_func

        self._attend = flash_attn_varlen_func

    @override
    def __call__(
        self, q_THD: Tensor, k_NHD: Tensor, v_NHD: Tensor, ragged: Ragged, scale: float
    ) -> tuple[Tensor, Tensor]:
        # The library returns +inf where there are no keys; `canonical` makes it -inf.
        out, lse, _ = self._attend(
            q_THD,
            k_NHD,
            v_NHD,
            ragged.query_starts,
            ragged.key_starts,
            ragged.max_queries,
            ragged.max_keys,
            softmax_scale=scale,
            causal=False,
            return_attn_probs=True,  # returns the lse; no probabilities are made without dropout
        )
        return ragged.canonical(out, lse)
