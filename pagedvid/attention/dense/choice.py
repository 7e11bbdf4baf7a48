"""Which library attends to dense keys: the first that can run here, and why the others cannot."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import import_module

import torch

from pagedvid.attention.dense.ragged import DenseAttention
from pagedvid.errors import BackendError

logger = logging.getLogger(__name__)

PROVIDERS = {
    "flash-attn-3": ("flash_attn_3", "FlashAttention3"),
    "flash-attn-4": ("flash_attn_4", "FlashAttention4"),
    "flash-attn-2": ("flash_attn_2", "FlashAttention2"),
    "torch-flash": ("torch_flash", "TorchFlash"),
    "xformers": ("xformers_partial", "XformersPartial"),
    "torch-efficient": ("torch_efficient", "TorchEfficient"),
    "torch-cpu": ("torch_cpu", "TorchCpu"),
}
"""File in this folder and its class, in order of preference."""


def provider_reasons(device: torch.device, dtype: torch.dtype, head_dim: int) -> dict[str, list[str]]:
    """For every provider, why it cannot be used here; an empty list when it can."""
    return {name: _reasons(file)(device, dtype, head_dim) for name, (file, _) in PROVIDERS.items()}


def choose_provider(device: torch.device, dtype: torch.dtype, head_dim: int) -> DenseAttention:
    """The first provider that can be used here. Raises BackendError with every provider's reasons."""
    reasons = provider_reasons(device, dtype, head_dim)
    for name, why in reasons.items():
        if not why:
            logger.info("dense attention: %s", name)
            return create_provider(name)
    listed = "; ".join(f"{name}: {', '.join(why)}" for name, why in reasons.items())
    raise BackendError(f"no library can attend to dense keys on {device}: {listed}")


def create_provider(name: str) -> DenseAttention:
    """The provider of that name; imports its library."""
    file, class_name = PROVIDERS[name]
    provider: DenseAttention = getattr(import_module(f"{__package__}.{file}"), class_name)()
    return provider


def _reasons(file: str) -> Callable[[torch.device, torch.dtype, int], list[str]]:
    reasons: Callable[[torch.device, torch.dtype, int], list[str]]
    reasons = import_module(f"{__package__}.{file}").unsupported_reasons
    return reasons
