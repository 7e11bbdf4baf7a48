"""Buffers that layers and steps of a cache share; its steps must therefore share a CUDA stream."""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.units import MIB, parse_bytes

CPU_BYTES, GPU_BYTES = 4 * MIB, 512 * MIB
"""Scratch by default: what stays in a CPU's caches, and the whole history of a layer of a large model on a GPU."""


def scratch_bytes(written: int | str, device: torch.device) -> int:
    """Bytes of decoded keys and values, from a number, text such as "64MiB", or "auto". Raises ConfigError."""
    if isinstance(written, str) and written == "auto":
        return CPU_BYTES if device.type == "cpu" else GPU_BYTES
    return parse_bytes(written)


class Scratch:
    """Named buffers, each as large as the largest request so far. Asking for a name again reuses its memory."""

    def __init__(self, device: torch.device) -> None:
        """`device`: of all buffers."""
        self._device = device
        self._buffers: dict[tuple[str, torch.dtype], Tensor] = {}

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous tensor [*shape], until the same name and dtype are asked for again."""
        num_elements = 1
        for size in shape:
            num_elements *= size
        buffer = self._buffers.get((name, dtype))
        if buffer is None or buffer.numel() < num_elements:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                buffer = torch.empty(num_elements, dtype=dtype, device=self._device)
            self._buffers[name, dtype] = buffer
        return buffer[:num_elements].view(shape)

    def tokens(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, *, head_major: bool) -> Tensor:
        """A buffer for tokens [..., n, heads, D]. `head_major`: stored in memory as [..., heads, n, D]."""
        if not head_major:
            return self.buffer(name, shape, dtype)
        *outer, num_tokens, num_heads, head_dim = shape
        return self.buffer(name, (*outer, num_heads, num_tokens, head_dim), dtype).transpose(-3, -2)
