"""One chunk of one layer at a time: its pages decoded into a reused dense scratch, and what is known of their noise.

Pages are decoded once per step and layer, and a dense library then runs at its full speed; in exchange one chunk's
keys and values lie in memory in the model's type. Steps of one cache share the scratch, and so one CUDA stream.

Axes: T packed tokens, H KV heads, Hq query heads, n keys, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pagedvid.attention.kernels.work import ChunkNoise
from pagedvid.attention.page_kernels import KernelBook, PageKernels
from pagedvid.attention.step_tables import History
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.assignment import KINDS
from pagedvid.codecs.base import saturated
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.page import is_quantized, read_codec


@dataclass(frozen=True)
class LayerReads:
    """What is looked up once for one layer of a history: denoise steps of the same chunk find it again."""

    kernels: tuple[PageKernels, PageKernels]
    """Of keys and of values."""
    pages: tuple[tuple[Tensor, Tensor], ...]
    """Those of every read, int32 [H, P] each."""
    noises: tuple[ChunkNoise | None, ...]


class ChunkScratch:
    """See the module docstring. What `decode` returned is overwritten by the next call."""

    def __init__(self, pool: PagePool, spec: CacheSpec, book: CodecBook, kernels: KernelBook) -> None:
        self._pool = pool
        self._spec = spec
        self._book = book
        self._kernels = kernels
        self._reads: WeakKeyDictionary[History, dict[int, LayerReads]] = WeakKeyDictionary()
        self._buffers: dict[str, Tensor] = {}

    def decode(self, history: History, number: int, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(keys, values) [n, H, D] of read `number`; keys turned."""
        shape = (history.reads[number].chunk.num_tokens, self._spec.num_kv_heads, self._spec.head_dim)
        keys, values = (self._buffer(kind, shape, dtype) for kind in KINDS)
        turning, reads = history.turning_of(layer), self._layer_reads(history, layer)
        turns, frame_row = (None, 0) if turning is None else (turning, turning.frame_rows[number])
        key_pages, value_pages = reads.pages[number]
        reads.kernels[0].decode(self._pool.records, key_pages, keys, turns, frame_row)
        reads.kernels[1].decode(self._pool.records, value_pages, values, None, 0)
        return saturated(keys), saturated(values)

    def is_corrected(self, history: History, layer: int) -> bool:
        """Whether a layer's keys are rounded so that it matters, and the cache corrects for it."""
        return self._spec.correction != "off" and is_quantized(history.codecs.of("keys", layer))

    def noise(self, history: History, number: int, layer: int) -> ChunkNoise | None:
        """What is known of the noise of the keys of read `number`; None: nothing is corrected."""
        return self._layer_reads(history, layer).noises[number]

    def noise_of_tokens(self, history: History, number: int, layer: int, tokens: slice) -> ChunkNoise | None:
        """The same of consecutive tokens of the chunk."""
        reads = self._layer_reads(history, layer)
        return self._noise(history, number, layer, reads.kernels[0], reads.pages[number][0], tokens)

    def _layer_reads(self, history: History, layer: int) -> LayerReads:
        layers = self._reads.setdefault(history, {})
        if layer not in layers:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                layers[layer] = self._look_up(history, layer)
        return layers[layer]

    def _look_up(self, history: History, layer: int) -> LayerReads:
        heads, numbers = slice(0, self._spec.num_kv_heads), range(len(history.reads))
        keys, values = (
            self._kernels.of(self._book.codec(history.codecs.of(kind, layer), kind, layer, heads)) for kind in KINDS
        )
        pages = tuple(
            (history.pages_of(number, "keys", layer), history.pages_of(number, "values", layer)) for number in numbers
        )
        noises = tuple(
            self._noise(
                history, number, layer, keys, pages[number][0], slice(0, history.reads[number].chunk.num_tokens)
            )
            for number in numbers
        )
        return LayerReads((keys, values), pages, noises)

    def _noise(
        self, history: History, number: int, layer: int, kernels: PageKernels, key_pages: Tensor, tokens: slice
    ) -> ChunkNoise | None:
        if not self.is_corrected(history, layer):
            return None
        stores_rotated = read_codec(history.codecs.of("keys", layer)).stores_rotated
        pairs = history.turning is not None and not stores_rotated
        alpha = None if history.alpha is None else history.alpha[layer, number]
        if self._spec.correction != "variance":
            step_square = kernels.step_square(self._pool.records, key_pages, tokens)
            if step_square is not None:
                return ChunkNoise(step_square, pairs, alpha, kernels.axes)
        if history.variance is None:  # nothing is known to correct, as in KeyNoise.bias
            return None
        return ChunkNoise(12 * history.variance[layer, number].float(), pairs, alpha)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A reused tensor; grows to the largest size asked for."""
        num_elements = torch.Size(shape).numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < num_elements:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                buffer = self._buffers[name] = torch.empty(num_elements, dtype=dtype, device=self._pool.device)
        return buffer[:num_elements].view(shape)
