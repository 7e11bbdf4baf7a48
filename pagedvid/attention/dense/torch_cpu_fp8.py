"""What flash-attn 3 computes with 8-bit inputs, in PyTorch operations, so that its rounding can be studied anywhere.

From the library's source (hopper/softmax.h, mainloop_fwd_sm90_tma_gmma_ws.hpp, tile_size.h): keys are taken in blocks,
from the last to the first. Products of 8-bit queries and keys are summed in float32; the scales of queries and keys
join the softmax scale. P = exp(score - highest score so far) * 256 is summed in float32 and then rounded to
float8_e4m3fn, 256 being what makes most of its range; the second product is summed in float32, and what was summed is
rescaled whenever a block brings a higher score. At the end come the scale of the values and the sum of P.

Not emulated: the tensor cores of compute capability 9.0 add 8-bit products with fewer bits than float32 has.

Axes as in base.py; h KV heads, M = G * T query rows of a KV head, b keys of a block.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.base import Fp8Attention, head_dim_reasons
from pagedvid.attention.dense.flash_attn_3 import MAX_HEAD_DIM
from pagedvid.attention.dense.fp8 import to_fp8
from pagedvid.attention.dense.torch_cpu import fold_group, unfold_group

BLOCK_KEYS = {64: 160, 96: 128, 128: 224, 192: 160, 256: 128}
"""Keys of a block, by the smallest of these head sizes that is large enough."""
LOG2_OF_LARGEST_P = 8


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why it cannot be used here; empty when it can."""
    if device.type != "cpu":
        return [f"it emulates flash-attn-3-fp8 on the device cpu, not on {device.type}"]
    return head_dim_reasons(head_dim, MAX_HEAD_DIM, factor=16)


class TorchCpuFp8(Fp8Attention):
    """flash-attn 3 with float8_e4m3fn inputs, emulated. Slow."""

    name = "torch-cpu-fp8"
    head_major = True

    @override
    def __call__(
        self,
        q_ETHD: Tensor,
        k_EnHD: Tensor,
        v_EnHD: Tensor,
        scale: float,
        key_scales_EH: Tensor,
        value_scales_EH: Tensor,
    ) -> tuple[Tensor, Tensor]:
        num_kv_heads = k_EnHD.shape[2]
        group = q_ETHD.shape[2] // num_kv_heads
        q8_ETHD, query_scales_EH = to_fp8(q_ETHD, num_kv_heads)
        log2_scale_Eh11 = (query_scales_EH * key_scales_EH * (scale * math.log2(math.e)))[:, :, None, None]
        q_EhMD, k_EhnD, v_EhnD = fold_group(q8_ETHD, group).float(), k_EnHD.transpose(1, 2), v_EnHD.transpose(1, 2)
        highest = q_EhMD.new_full((*q_EhMD.shape[:3], 1), -torch.inf)
        total, out_EhMD = torch.zeros_like(highest), torch.zeros_like(q_EhMD)
        size = block_keys(q_ETHD.shape[3])
        for first in reversed(range(0, k_EhnD.shape[2], size)):
            k_EhbD, v_EhbD = (x[:, :, first : first + size].float() for x in (k_EhnD, v_EhnD))
            score_EhMb = q_EhMD @ k_EhbD.mT
            before, highest = highest, torch.maximum(highest, score_EhMb.amax(-1, keepdim=True))
            kept = torch.exp2((before - highest) * log2_scale_Eh11)
            p_EhMb = torch.exp2(score_EhMb * log2_scale_Eh11 - (highest * log2_scale_Eh11 - LOG2_OF_LARGEST_P))
            total = total * kept + p_EhMb.sum(-1, keepdim=True)
            out_EhMD = out_EhMD * kept + p_EhMb.to(torch.float8_e4m3fn).float() @ v_EhbD
        out_EhMD *= value_scales_EH[:, :, None, None] / total
        lse_EhM1 = highest * log2_scale_Eh11 * math.log(2) + torch.log(total * 2**-LOG2_OF_LARGEST_P)
        out_ETHD = unfold_group(out_EhMD.bfloat16().to(q_ETHD.dtype), group)
        return out_ETHD, unfold_group(lse_EhM1, group).squeeze(3)


def block_keys(head_dim: int) -> int:
    """Keys of a block."""
    return next(keys for largest, keys in BLOCK_KEYS.items() if head_dim <= largest)
