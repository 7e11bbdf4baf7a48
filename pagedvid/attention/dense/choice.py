"""Which library attends to dense keys: the first that can run here, and why the others cannot."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from importlib import import_module
from typing import Any

import torch

from pagedvid.attention.dense.base import DenseAttention, Fp8Attention
from pagedvid.devices import capability
from pagedvid.errors import BackendError

logger = logging.getLogger(__name__)

PROVIDERS = {
    "flash-attn-3": ("flash_attn_3", "FlashAttention3"),
    "flash-attn-4": ("flash_attn_4", "FlashAttention4"),
    "torch-cudnn": ("torch_cudnn", "TorchCudnn"),
    "flash-attn-2": ("flash_attn_2", "FlashAttention2"),
    "torch-flash": ("torch_flash", "TorchFlash"),
    "xformers": ("xformers_partial", "XformersPartial"),
    "torch-efficient": ("torch_efficient", "TorchEfficient"),
    "torch-cpu": ("torch_cpu", "TorchCpu"),
}
"""File in this folder and its class, in order of preference; see `preference`."""

FP8_PROVIDERS = {
    "flash-attn-3-fp8": ("flash_attn_3_fp8", "FlashAttention3Fp8"),
    "torch-cpu-fp8": ("torch_cpu_fp8", "TorchCpuFp8"),
}
"""The same for history in float8_e4m3fn."""
EMULATED = frozenset({"torch-cpu-fp8"})
"""These show on a CPU what a library loses in 8 bits. They are slower than attention without 8 bits."""


def preference(device: torch.device) -> list[str]:
    """Names of the providers of bfloat16 attention, best first.

    cuDNN's kernel is as fast as flash-attn 3 from compute capability 9.0 on; before, flash-attn 2 is at least as fast.
    """
    names = list(PROVIDERS)
    if device.type == "cuda" and (capability(device) or (0, 0)) < (9, 0):
        names.remove("torch-cudnn")
        names.insert(names.index("flash-attn-2") + 1, "torch-cudnn")
    return names


def provider_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> dict[str, list[str]]:
    """For every provider in order of preference, why it cannot be used here; an empty list when it can."""
    return _reasons(PROVIDERS, preference(device), device, dtype, head_dim)


def fp8_provider_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> dict[str, list[str]]:
    """The same for the providers of FP8 attention; `dtype` is that of the queries."""
    return _reasons(FP8_PROVIDERS, FP8_PROVIDERS, device, dtype, head_dim)


def choose_provider(device: torch.device, dtype: torch.dtype, head_dim: int) -> DenseAttention:
    """The first provider that can be used here. Raises BackendError with every provider's reasons."""
    name = _first_usable("dense attention", device, provider_reasons(device, dtype, head_dim))
    return create_provider(name)


def choose_fp8_provider(device: torch.device, dtype: torch.dtype, head_dim: int) -> Fp8Attention:
    """The first provider of FP8 attention that can be used here. Raises BackendError with every provider's reasons."""
    name = _first_usable("FP8 attention", device, fp8_provider_reasons(device, dtype, head_dim))
    provider: Fp8Attention = _create(*FP8_PROVIDERS[name])
    return provider


def fp8_is_faster(device: torch.device, dtype: torch.dtype, head_dim: int) -> bool:
    """Whether something other than an emulation runs attention in 8 bits here."""
    reasons = fp8_provider_reasons(device, dtype, head_dim)
    return any(not why for name, why in reasons.items() if name not in EMULATED)


def create_provider(name: str) -> DenseAttention:
    """The provider of that name; imports its library."""
    provider: DenseAttention = _create(*PROVIDERS[name])
    return provider


def _reasons(
    providers: Mapping[str, tuple[str, str]], names: Iterable[str], *situation: object
) -> dict[str, list[str]]:
    return {name: _module(providers[name][0]).unsupported_reasons(*situation) for name in names}


def _first_usable(purpose: str, device: torch.device, reasons: Mapping[str, list[str]]) -> str:
    for name, why in reasons.items():
        if not why:
            logger.info("%s: %s", purpose, name)
            return name
    listed = "; ".join(f"{name}: {', '.join(why)}" for name, why in reasons.items())
    raise BackendError(f"no library for {purpose} can run on {device}: {listed}")


def _create(file: str, class_name: str) -> Any:
    return getattr(_module(file), class_name)()


def _module(file: str) -> Any:
    return import_module(f"{__package__}.{file}")
