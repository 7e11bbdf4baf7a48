"""xformers: `memory_efficient_attention_partial`, one call per sequence.

Nothing else of the library is imported: its inner modules are moving to another package. Its `merge_attentions` is not
needed, because the correction and the merge are one pass here (kernels/merge.py).
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.ragged import DenseAttention, Ragged, device_reasons, head_dim_reasons, missing

MAX_HEAD_DIM = 256


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why this library cannot be used here; empty when it can."""
    reasons = missing("xformers", "pip install xformers") + device_reasons(device, dtype, (8, 0))
    reasons += head_dim_reasons(head_dim, MAX_HEAD_DIM)
    return reasons


class XformersPartial(DenseAttention):
    """`memory_efficient_attention_partial` of xformers."""

    name = "xformers"

    def __init__(self) -> None:
        from xformers.ops.fmha import memory_efficient_attention_partial

        self._attend = memory_efficient_attention_partial

    @override
    def __call__(
        self, q_THD: Tensor, k_NHD: Tensor, v_NHD: Tensor, ragged: Ragged, scale: float
    ) -> tuple[Tensor, Tensor]:
        # Sequences without queries or keys are skipped.
        num_kv_heads = k_NHD.shape[1]
        group = q_THD.shape[1] // num_kv_heads
        out_THD = torch.zeros_like(q_THD)
        lse_TH = torch.full(q_THD.shape[:2], -torch.inf, dtype=torch.float32, device=q_THD.device)
        for queries, keys in ragged.slices():
            if keys.start == keys.stop or queries.start == queries.stop:
                continue
            # [1, M, Hkv, G, D]: the heads of a group share their keys, which are expanded without a copy.
            q = q_THD[queries].unflatten(1, (num_kv_heads, group)).unsqueeze(0)
            k, v = (x[keys].unsqueeze(2).expand(-1, -1, group, -1).unsqueeze(0) for x in (k_NHD, v_NHD))
            out, lse = self._attend(q, k, v, scale=scale)  # lse [1, Hkv, G, M]
            out_THD[queries] = out[0].flatten(1, 2)
            lse_TH[queries] = lse[0].flatten(0, 1).transpose(0, 1)[: queries.stop - queries.start]
        return out_THD, lse_TH
