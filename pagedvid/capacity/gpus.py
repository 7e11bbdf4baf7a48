"""Common GPUs, and the memory that a process can use on them."""

from __future__ import annotations

from difflib import get_close_matches

from pagedvid.errors import ConfigError
from pagedvid.shown import shown
from pagedvid.units import GIB

CONTEXT_GIB = 0.5
"""Memory that CUDA's context and kernels take before the first tensor."""

_TOTAL_GIB = {
    "t4": 14.5,
    "a10g": 22.0,
    "l4": 22.0,
    "rtx3090": 23.6,
    "rtx4090": 23.6,
    "rtx5090": 31.3,
    "a100-40gb": 39.3,
    "l40s": 44.3,
    "a6000": 47.4,
    "a100-80gb": 79.1,
    "h100": 79.1,
    "h200": 139.7,
    "b200": 178.3,
}
"""Capacity that PyTorch reports (the "total capacity" of its out-of-memory message), rounded down to 0.1 GiB. It is
less than the number on the box, which is in GB and includes what ECC and firmware keep."""


def gpu_names() -> tuple[str, ...]:
    """Names that `gpu_memory` knows."""
    return tuple(_TOTAL_GIB)


def gpu_memory(name: str) -> int:
    """Usable bytes of the GPU of that name. Raises ConfigError."""
    key = name.lower()
    if key not in _TOTAL_GIB:
        close = get_close_matches(key, _TOTAL_GIB, n=2)
        hint = f" - did you mean {' or '.join(close)}?" if close else ""
        raise ConfigError(f"unknown GPU {shown(name)}{hint} (known: {', '.join(_TOTAL_GIB)}); or give --memory SIZE")
    return int((_TOTAL_GIB[key] - CONTEXT_GIB) * GIB)
