"""FlashAttention 3 with 8-bit queries, keys and values: its matrix products run at twice the rate of bfloat16."""

from __future__ import annotations

from importlib import import_module

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.dense.base import Fp8Attention, device_reasons, head_dim_reasons, missing
from pagedvid.attention.dense.flash_attn_3 import INSTALL, MAX_HEAD_DIM, MODULE
from pagedvid.attention.dense.fp8 import to_fp8

ARGUMENTS = ("softmax_scale", "causal", "q_descale", "k_descale", "v_descale", "return_attn_probs")


def unsupported_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> list[str]:
    """Why this library cannot be used here; empty when it can. `dtype` is that of the queries."""
    reasons = device_reasons(device, dtype, (9, 0), highest=9) + head_dim_reasons(head_dim, MAX_HEAD_DIM, factor=16)
    reasons = reasons or missing(MODULE, "flash_attn_func", ARGUMENTS, INSTALL)
    if not reasons and _is_built_without_fp8():
        reasons.append(f"{MODULE} was built with FLASHATTENTION_DISABLE_FP8")
    return reasons


class FlashAttention3Fp8(Fp8Attention):
    """`flash_attn_func` of flash-attn 3 with float8_e4m3fn inputs."""

    name = "flash-attn-3-fp8"
    head_major = False

    def __init__(self) -> None:
        from flash_attn_interface import flash_attn_func

        self._attend = flash_attn_func

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
        q8_ETHD, query_scales_EH = to_fp8(q_ETHD, k_EnHD.shape[2])
        out, lse_EHT, *_ = self._attend(
            q8_ETHD,
            k_EnHD,
            v_EnHD,
            softmax_scale=scale,
            causal=False,
            q_descale=query_scales_EH,
            k_descale=key_scales_EH,
            v_descale=value_scales_EH,
            return_attn_probs=True,
        )
        return out.to(q_ETHD.dtype), lse_EHT.transpose(1, 2)


def _is_built_without_fp8() -> bool:
    """What the library's own record of its build says; older builds have none."""
    try:
        config = import_module("flash_attn_config").CONFIG
    except ImportError:
        return False
    return bool(config["build_flags"].get("FLASHATTENTION_DISABLE_FP8"))
