"""Names of devices, read once where they enter."""

from __future__ import annotations

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


def capability(device: torch.device) -> tuple[int, int] | None:
    """The compute capability of a GPU; None if PyTorch can use no such GPU here."""
    try:
        return torch.cuda.get_device_capability(device)
    except (AssertionError, RuntimeError):  # built without CUDA; no driver, or no device of that number
        return None
