"""PyTorch's flash kernel for the CPU.

Axes as in base.py; h KV heads, M = G * T query rows of a KV head.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.base import DenseAttention, missing_operator

OPERATOR = "_scaled_dot_product_flash_attention_for_cpu"
LARGE_BLOCKS_FROM_ROWS = 768
"""From this many rows on, the CPU's flash kernel works on blocks of 256 rows; with fewer, on smaller blocks."""


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why it cannot be used here; empty when it can."""
    if device.type != "cpu":
        return [f"it runs on the device cpu, not on {device.type}"]
    return missing_operator(OPERATOR, ["query", "key", "value", "scale"])


class TorchCpu(DenseAttention):
    """PyTorch's flash kernel for the CPU."""

    name = "torch-cpu"
    head_major = True

    @override
    def __call__(self, q_ETHD: Tensor, k_EnHD: Tensor, v_EnHD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        group = q_ETHD.shape[2] // k_EnHD.shape[2]
        out_EhMD, lse_EhM = flash_partial(
            fold_group(q_ETHD, group), k_EnHD.transpose(1, 2), v_EnHD.transpose(1, 2), scale
        )
        lse_EThG = lse_EhM.unflatten(2, (group, -1)).permute(0, 3, 1, 2)
        return unfold_group(out_EhMD, group), lse_EThG.flatten(2, 3)


def fold_group(q_ETHD: Tensor, group: int) -> Tensor:
    """[E, T, h * G, D] -> [E, h, G * T, D]: query heads of a KV head become more rows, as there is no mask.

    A view if there is one head to a group, or if q is stored in memory as [E, Hq, T, D].
    """
    if q_ETHD.stride(0) == 0:  # what is expanded stays so
        return _folded(q_ETHD[:1], group).expand(len(q_ETHD), -1, -1, -1)
    return _folded(q_ETHD, group)


def _folded(q_ETHD: Tensor, group: int) -> Tensor:
    return q_ETHD.unflatten(2, (-1, group)).permute(0, 2, 3, 1, 4).flatten(2, 3)


def unfold_group(out_EhMD: Tensor, group: int) -> Tensor:
    """[E, h, G * T, D] -> [E, T, h * G, D]; a view if there is one head to a group."""
    return out_EhMD.unflatten(2, (group, -1)).permute(0, 3, 1, 2, 4).flatten(2, 3)


def flash_partial(q_EhMD: Tensor, k_EhnD: Tensor, v_EhnD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention (out [E, h, M, D] in q's dtype, lse float32 [E, h, M]) by PyTorch's flash kernel for the CPU.

    It is called directly because PyTorch's public functions do not return the log-sum-exp.
    """
    # The kernel assumes without a check that the last axis is contiguous.
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q_EhMD, k_EhnD, v_EhnD))
    parts = row_parts(q, torch.get_num_threads())
    if parts > 1:
        q = q[0].unflatten(1, (parts, -1))
        k, v = (x[0].unsqueeze(1).expand(-1, parts, -1, -1) for x in (k, v))
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
    if parts > 1:
        out, lse = out.flatten(1, 2).unsqueeze(0), lse.flatten(1, 2).unsqueeze(0)
    return out, lse


def row_parts(q_EhMD: Tensor, num_threads: int) -> int:
    """Into how many parts to cut the rows of q, so that the kernel gives all threads equal work.

    It deals out blocks of 256 rows: from one head with 4680 rows, one of two threads would get 2560. Rows are not cut
    into parts so short that the kernel would use smaller, slower blocks.
    """
    num_ranges, num_heads, num_rows, _ = q_EhMD.shape
    is_even = num_ranges * num_heads % num_threads == 0
    can_be_cut = num_ranges == 1 and num_rows % num_threads == 0 and num_rows // num_threads >= LARGE_BLOCKS_FROM_ROWS
    return num_threads if can_be_cut and not is_even else 1
