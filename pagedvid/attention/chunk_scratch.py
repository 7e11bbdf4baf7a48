"""One chunk of one layer at a time: its pages decoded into a reused dense scratch, and what is known of their noise.

Pages are decoded once per step and layer, and a dense library then runs at its full speed; in exchange one chunk's
keys and values lie in memory in the model's type.

Axes: T packed tokens, H KV heads, Hq query heads, n keys, D head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.attention.kernels.work import ChunkNoise
from pagedvid.attention.page_kernels import KernelBook, PageKernels
from pagedvid.attention.step_tables import History
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.chunk_codecs import KINDS
from pagedvid.page_format import is_quantized, read_codec
from pagedvid.quant.book import CodecBook


class ChunkScratch:
    """See the module docstring. What `decode` returned is overwritten by the next call."""

    def __init__(self, pool: PagePool, spec: CacheSpec, book: CodecBook, kernels: KernelBook) -> None:
        self._pool = pool
        self._spec = spec
        self._book = book
        self._kernel_book = kernels
        self._buffers: dict[str, Tensor] = {}

    def decode(self, history: History, number: int, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(keys, values) [n, H, D] of read `number`; keys turned."""
        shape = (history.reads[number].chunk.num_tokens, self._spec.num_kv_heads, self._spec.head_dim)
        keys, values = (self._buffer(kind, shape, dtype) for kind in KINDS)
        turning, pages = history.turning_of(layer), self._pages(history, number, layer)
        turns, frame_row = (None, 0) if turning is None else (turning.turns, turning.frame_rows[number])
        self._kernels(history, "keys", layer).decode(self._pool.records, pages["keys"], keys, turns, frame_row)
        self._kernels(history, "values", layer).decode(self._pool.records, pages["values"], values, None, 0)
        return keys, values

    def is_corrected(self, history: History, layer: int) -> bool:
        """Whether a layer's keys are rounded so that it matters, and the cache corrects for it."""
        return self._spec.correction != "off" and is_quantized(history.codecs.of("keys", layer))

    def noise(self, history: History, number: int, layer: int, tokens: slice | None = None) -> ChunkNoise | None:
        """What is known of the noise of the keys of read `number`, of all or consecutive `tokens`; None: nothing is
        corrected."""
        if not self.is_corrected(history, layer):
            return None
        step_square = None
        if self._spec.correction != "variance":
            pages = self._pages(history, number, layer)["keys"]
            tokens = tokens or slice(0, history.reads[number].chunk.num_tokens)
            step_square = self._kernels(history, "keys", layer).step_square(self._pool.records, pages, tokens)
        if step_square is None:
            if history.variance is None:  # nothing is known to correct, as in KeyNoise.bias
                return None
            step_square = 12 * history.variance[layer, number].float()
        alpha = None if history.alpha is None else history.alpha[layer, number]
        stores_rotated = read_codec(history.codecs.of("keys", layer)).stores_rotated
        return ChunkNoise(step_square, history.turning is not None and not stores_rotated, alpha)

    def noise_queries(self, history: History, layer: int, q_THD: Tensor) -> Tensor:
        """Queries along the directions of which `noise` speaks."""
        axes = self._kernels(history, "keys", layer).axes
        if axes is None or self._spec.correction in ("off", "variance"):
            return q_THD
        return q_THD.float() @ axes.T

    def _kernels(self, history: History, kind: str, layer: int) -> PageKernels:
        heads = slice(0, self._spec.num_kv_heads)
        return self._kernel_book.of(self._book.codec(history.codecs.of(kind, layer), kind, layer, heads))

    def _pages(self, history: History, number: int, layer: int) -> dict[str, Tensor]:
        return {kind: history.pages_of(number, kind, layer) for kind in KINDS}

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A reused tensor; grows to the largest size asked for."""
        num_elements = torch.Size(shape).numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < num_elements:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                buffer = self._buffers[name] = torch.empty(num_elements, dtype=dtype, device=self._pool.device)
        return buffer[:num_elements].view(shape)
