"""Buffers that all layers and steps of a cache share."""

from __future__ import annotations

import torch
from torch import Tensor


class Scratch:
    """Named buffers, each as large as the largest request so far. Asking for a name again reuses its memory."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[str, Tensor] = {}

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor of that shape."""
        num_elements = torch.Size(shape).numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < num_elements:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                buffer = self._buffers[name] = torch.empty(num_elements, dtype=dtype, device=self._device)
        return buffer[:num_elements].view(shape)
