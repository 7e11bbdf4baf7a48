"""One attention layer of the models that the GPU benchmarks speak of, and how a call is timed on a device."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagedvid.rotary.grid_rotary import GridRotary
from pagedvid.rotary.tables import rotate

LARGE_CHANNELS = 4
LARGE_CHANNEL_FACTOR = 8.0


@dataclass(frozen=True)
class LayerShape:
    """Heads of one layer, frames of one chunk, denoise steps of a chunk (configs/models/ has the sources)."""

    query_heads: int
    kv_heads: int
    head_dim: int
    frames: int
    rows: int
    """Of tokens in a frame."""
    columns: int
    denoise_steps: int

    @property
    def chunk_tokens(self) -> int:
        """Tokens of one chunk."""
        return self.frames * self.rows * self.columns

    def rope(self) -> GridRotary:
        """Wan's rotary embedding, for all models alike: of 128 channels 44 rotate with time, 42 with rows, 42
        with columns."""
        side = self.head_dim // 6 * 2
        channels = (self.head_dim - 2 * side, side, side)
        return GridRotary.from_theta(channels, self.rows, self.columns, "half")


SHAPES = {
    "wan-1.3b": LayerShape(12, 12, 128, 3, 30, 52, 4),
    "wan-14b": LayerShape(40, 40, 128, 3, 30, 52, 4),
    "magi-1-4.5b": LayerShape(24, 8, 128, 6, 45, 45, 32),
    "hy-worldplay-8b": LayerShape(16, 16, 128, 4, 30, 52, 4),
    "tiny": LayerShape(4, 2, 32, 2, 5, 7, 4),
}
""""tiny" is for trying the scripts out."""


class LayerInputs:
    """q, k, v of one layer, BF16 [tokens, heads, head_dim], before rotary embedding; some key channels are large."""

    def __init__(self, shape: LayerShape, device: torch.device, seed: int) -> None:
        self.shape = shape
        self.rope = shape.rope()
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device
        self._key_scale = torch.ones(shape.head_dim, device=device)
        self._key_scale[:: shape.head_dim // LARGE_CHANNELS] = LARGE_CHANNEL_FACTOR

    def draw(self, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """New random q, k, v."""
        q, k, v = (
            torch.randn(num_tokens, heads, self.shape.head_dim, generator=self._generator, device=self._device)
            for heads in (self.shape.query_heads, self.shape.kv_heads, self.shape.kv_heads)
        )
        return q.bfloat16(), (k * self._key_scale).bfloat16(), v.bfloat16()

    def turned(self, x: Tensor, first_token: int) -> Tensor:
        """x [tokens, heads, head_dim] after rotary embedding."""
        cos, sin = (table.to(self._device).unsqueeze(1) for table in self.rope.tables(first_token, len(x)))
        return rotate(x.float(), cos, sin).bfloat16()


def seconds_on(device: torch.device, call: Callable[[], Any]) -> float:
    """Time of one call: between two events on a GPU, by the clock on a CPU."""
    if device.type != "cuda":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1e3


def workspace_bytes(device: torch.device, call: Callable[[], Tensor]) -> int | None:
    """Peak of GPU memory inside a call beyond what was held before and its result; None on a CPU (see memory.py)."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device)) - before - result.untyped_storage().nbytes()
