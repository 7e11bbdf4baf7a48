"""xformers: `memory_efficient_attention_partial`.

Nothing else of the library is imported: its inner modules are moving to another package. Its `merge_attentions` is not
needed, because the correction and the merge are one pass here.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.base import DenseAttention, device_reasons, head_dim_reasons, missing

MAX_HEAD_DIM = 256
MODULE, FUNCTION = "xformers.ops.fmha", "memory_efficient_attention_partial"


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why this library cannot be used here; empty when it can."""
    reasons = device_reasons(device, dtype, (8, 0)) + head_dim_reasons(head_dim, MAX_HEAD_DIM)
    return reasons or missing(MODULE, FUNCTION, ("query", "key", "value", "scale"), "pip install xformers")


class XformersPartial(DenseAttention):
    """`memory_efficient_attention_partial` of xformers."""

    name = "xformers"
    head_major = False

    def __init__(self) -> None:
        from xformers.ops.fmha import memory_efficient_attention_partial

        self._attend = memory_efficient_attention_partial

    @override
    def __call__(self, q_ETHD: Tensor, k_EnHD: Tensor, v_EnHD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        num_queries, num_kv_heads = q_ETHD.shape[1], k_EnHD.shape[2]
        # [E, T, H, G, D]: the heads of a group share their keys, which are expanded without a copy.
        q = q_ETHD.unflatten(2, (num_kv_heads, -1))
        k, v = (x.unsqueeze(3).expand(-1, -1, -1, q.shape[3], -1) for x in (k_EnHD, v_EnHD))
        out_ETHGD, lse_EHGT = self._attend(q, k, v, scale=scale)
        out_ETHD = out_ETHGD.flatten(2, 3).to(q_ETHD.dtype)  # partials of some of its kernels are float32
        return out_ETHD, lse_EHGT.flatten(1, 2)[:, :, :num_queries].transpose(1, 2)
