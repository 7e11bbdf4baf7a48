"""The flash kernel inside PyTorch's CUDA builds, called directly because it returns the log-sum-exp."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.base import DenseAttention, device_reasons, head_dim_reasons, missing_operator

MAX_HEAD_DIM = 256
OPERATOR = "_flash_attention_forward"
ARGUMENTS = (
    *("query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"),
    *("dropout_p", "is_causal", "return_debug_mask", "scale"),
)


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why it cannot be used here; empty when it can."""
    reasons = device_reasons(device, dtype, (8, 0)) + head_dim_reasons(head_dim, MAX_HEAD_DIM)
    if not reasons and not torch.backends.cuda.is_flash_attention_available():
        reasons.append(f"torch {torch.__version__} was built without flash attention")
    return reasons or missing_operator(OPERATOR, ARGUMENTS)


class TorchFlash(DenseAttention):
    """The flash kernel of PyTorch's CUDA builds."""

    name = "torch-flash"
    head_major = False

    @override
    def __call__(self, q_ETHD: Tensor, k_EnHD: Tensor, v_EnHD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        # The kernel supports grouped heads. Without starts of sequences, every row of the batch is a sequence.
        out, lse_EHT, *_ = torch.ops.aten._flash_attention_forward(
            q_ETHD,
            k_EnHD,
            v_EnHD,
            None,
            None,
            q_ETHD.shape[1],
            k_EnHD.shape[1],
            0.0,  # dropout
            False,  # causal
            False,  # debug mask
            scale=scale,
        )
        return out, lse_EHT.transpose(1, 2)
