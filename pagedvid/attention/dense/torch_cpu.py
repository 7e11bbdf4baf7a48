"""PyTorch's flash kernel for the CPU, one call per sequence; the GPU backends are tested with it."""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.ragged import DenseAttention, Ragged
from pagedvid.attention.partial import flash_partial


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why it cannot be used here; empty when it can."""
    return [] if device.type == "cpu" else [f"it runs on the device cpu, not on {device.type}"]


class TorchCpu(DenseAttention):
    """PyTorch's flash kernel for the CPU."""

    name = "torch-cpu"

    @override
    def __call__(
        self, q_THD: Tensor, k_NHD: Tensor, v_NHD: Tensor, ragged: Ragged, scale: float
    ) -> tuple[Tensor, Tensor]:
        group = q_THD.shape[1] // k_NHD.shape[1]
        out_THD = torch.zeros_like(q_THD)
        lse_TH = torch.full(q_THD.shape[:2], -torch.inf, dtype=torch.float32)
        for queries, keys in ragged.slices():
            if keys.start == keys.stop or queries.start == queries.stop:
                continue
            k, v = (x[keys].repeat_interleave(group, dim=1).transpose(0, 1).unsqueeze(0) for x in (k_NHD, v_NHD))
            partial = flash_partial(q_THD[queries].transpose(0, 1).unsqueeze(0), k, v, scale)
            out_THD[queries] = partial.out[0].transpose(0, 1).to(q_THD.dtype)
            lse_TH[queries] = partial.lse[0].transpose(0, 1)
        return out_THD, lse_TH
