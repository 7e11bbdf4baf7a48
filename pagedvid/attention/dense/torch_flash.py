"""The flash kernel inside PyTorch's CUDA builds, called directly because it returns the log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.ragged import DenseAttention, Ragged, device_reasons, head_dim_reasons

MAX_HEAD_DIM = 256


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why it cannot be used here; empty when it can."""
    reasons = device_reasons(device, dtype, (8, 0))
    reasons += head_dim_reasons(head_dim, MAX_HEAD_DIM)
    if not reasons and not torch.backends.cuda.is_flash_attention_available():
        reasons.append(f"torch {torch.__version__} was built without flash attention")
    return reasons


class TorchFlash(DenseAttention):
    """The flash kernel of PyTorch's CUDA builds."""

    name = "torch-flash"

    @override
    def __call__(
        self, q_THD: Tensor, k_NHD: Tensor, v_NHD: Tensor, ragged: Ragged, scale: float
    ) -> tuple[Tensor, Tensor]:
        # The kernel supports grouped heads.
        out, lse, *_ = torch.ops.aten._flash_attention_forward(
            q_THD,
            k_NHD,
            v_NHD,
            ragged.query_starts,
            ragged.key_starts,
            ragged.max_queries,
            ragged.max_keys,
            0.0,  # dropout
            False,  # causal
            False,  # debug mask
            scale=scale,
        )
        return ragged.canonical(out, lse)
