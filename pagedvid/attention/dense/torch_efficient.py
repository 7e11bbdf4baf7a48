"""PyTorch's memory-efficient kernel for CUDA: slower than flash kernels, but it takes float32 and large heads."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.base import DenseAttention, device_reasons, head_dim_reasons, missing_operator

MAX_HEAD_DIM = 65536
OPERATOR = "_scaled_dot_product_efficient_attention"
ARGUMENTS = ("query", "key", "value", "attn_bias", "compute_log_sumexp", "scale")


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why it cannot be used here; empty when it can."""
    reasons = device_reasons(device, dtype, (8, 0), dtypes=(torch.float32, torch.bfloat16, torch.float16))
    reasons += head_dim_reasons(head_dim, MAX_HEAD_DIM)  # from compute capability 8.0 on, only kernels of aligned rows
    return reasons or missing_operator(OPERATOR, ARGUMENTS)


class TorchEfficient(DenseAttention):
    """The memory-efficient kernel of PyTorch."""

    name = "torch-efficient"
    head_major = False

    @override
    def __call__(self, q_ETHD: Tensor, k_EnHD: Tensor, v_EnHD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        # Keys are repeated for the heads of a group: the kernel does not support grouped heads.
        group = q_ETHD.shape[2] // k_EnHD.shape[2]
        if group > 1:
            k_EnHD, v_EnHD = (x.repeat_interleave(group, dim=2) for x in (k_EnHD, v_EnHD))
        q, k, v = (x.transpose(1, 2) for x in (q_ETHD, k_EnHD, v_EnHD))
        out_EHTD, lse_EHT, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            q, k, v, None, compute_log_sumexp=True, scale=scale
        )
        num_queries = q_ETHD.shape[1]
        return out_EHTD.transpose(1, 2), lse_EHT[:, :, :num_queries].transpose(1, 2)
