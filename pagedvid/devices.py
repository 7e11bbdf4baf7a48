"""Names of devices, read once where they enter."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

from pagedvid.errors import ConfigError


def read_device(written: torch.device | str) -> torch.device:
    """The device of that name, if it exists on this machine. Raises ConfigError."""
    try:
        device = torch.device(written)
    except (RuntimeError, TypeError, ValueError):
        raise ConfigError(f"device is {written!r}; write cpu, cuda or cuda:N") from None
    num_gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if device.type == "cuda" and (device.index or 0) >= num_gpus:
        raise ConfigError(f"device is {written!r}, but PyTorch sees {num_gpus} CUDA devices here; use cpu")
    return device


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one: kernels are launched on the current device, whatever device their tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
