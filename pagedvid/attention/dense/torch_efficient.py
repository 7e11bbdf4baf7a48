"""PyTorch's memory-efficient kernel for CUDA, one call per sequence: slower than flash kernels, but takes float32."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.ragged import DenseAttention, Ragged, device_reasons


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why it cannot be used here; empty when it can."""
    return device_reasons(device, dtype, (8, 0), dtypes=(torch.float32, torch.bfloat16, torch.float16))


class TorchEfficient(DenseAttention):
    """The memory-efficient kernel of PyTorch."""

    name = "torch-efficient"

    @override
    def __call__(
        self, q_THD: Tensor, k_NHD: Tensor, v_NHD: Tensor, ragged: Ragged, scale: float
    ) -> tuple[Tensor, Tensor]:
        # Keys are repeated for the heads of a group: the kernel does not support grouped heads.
        group = q_THD.shape[1] // k_NHD.shape[1]
        out_THD = torch.zeros_like(q_THD)
        lse_TH = torch.full(q_THD.shape[:2], -torch.inf, dtype=torch.float32, device=q_THD.device)
        for queries, keys in ragged.slices():
            if keys.start == keys.stop or queries.start == queries.stop:
                continue
            q = q_THD[queries].transpose(0, 1).unsqueeze(0)
            k, v = (x[keys].repeat_interleave(group, dim=1).transpose(0, 1).unsqueeze(0) for x in (k_NHD, v_NHD))
            out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
                q, k, v, None, compute_log_sumexp=True, scale=scale
            )
            out_THD[queries] = out[0].transpose(0, 1)
            lse_TH[queries] = lse[0, :, : queries.stop - queries.start].transpose(0, 1)  # rows are padded to 32
        return out_THD, lse_TH
