"""cuDNN's flash kernel inside PyTorch's CUDA builds, called directly because it returns the log-sum-exp."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.base import DenseAttention, device_reasons, head_dim_reasons, missing_operator

MAX_HEAD_DIM = 128
OLDEST_CUDNN = 90000
OPERATOR = "_scaled_dot_product_cudnn_attention"
ARGUMENTS = ("query", "key", "value", "attn_bias", "compute_log_sumexp", "scale")


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why it cannot be used here; empty when it can."""
    reasons = device_reasons(device, dtype, (8, 0)) + head_dim_reasons(head_dim, MAX_HEAD_DIM)
    if reasons:
        return reasons
    cudnn = torch.backends.cudnn.version()
    if cudnn is None or cudnn < OLDEST_CUDNN:
        return [f"cuDNN {'is missing' if cudnn is None else cudnn}; it needs {OLDEST_CUDNN} or newer"]
    return missing_operator(OPERATOR, ARGUMENTS)


class TorchCudnn(DenseAttention):
    """cuDNN's flash kernel, as PyTorch calls it.

    It plans a kernel for every new shape and set of strides, which takes a while, and keeps the plan.
    """

    name = "torch-cudnn"
    head_major = False

    @override
    def __call__(self, q_ETHD: Tensor, k_EnHD: Tensor, v_EnHD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        if k_EnHD.shape[1] == 1:  # cuDNN does not take a single key; two equal ones weigh twice as much
            k_EnHD, v_EnHD = (x.expand(-1, 2, -1, -1).contiguous() for x in (k_EnHD, v_EnHD))
            out, lse_ETH = self(q_ETHD, k_EnHD, v_EnHD, scale)
            return out, lse_ETH - math.log(2)
        if q_ETHD.stride(0) == 0 and len(q_ETHD) > 1:
            # cuDNN documents no strides of 0, and PyTorch lays the output out like the queries. The copy is small:
            # every query meets thousands of keys.
            q_ETHD = q_ETHD.contiguous()
        q, k, v = (x.transpose(1, 2) for x in (q_ETHD, k_EnHD, v_EnHD))
        out_EHTD, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
            q, k, v, None, compute_log_sumexp=True, scale=scale
        )
        lse_EHT = lse.squeeze(3) if lse.dim() == 4 else lse  # [E, H, T, 1] since torch 2.9
        return out_EHTD.transpose(1, 2), lse_EHT.transpose(1, 2)
