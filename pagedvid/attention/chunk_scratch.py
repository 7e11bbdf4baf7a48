"""Buffers that layers and steps share, and in them one chunk of one layer at a time: its decoded pages, and its quant
error.

Pages are decoded once per step and layer, so that a dense library then runs at full speed; in exchange, one chunk's
keys and values take memory in the model's dtype. Steps of one cache share the scratch, so they must share a CUDA
stream.

Axes: T packed tokens, H KV heads, Hq query heads, n keys, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pagedvid.attention.step_tables import ReadGroup
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.assignment import KINDS
from pagedvid.codecs.base import PageKernels, saturated
from pagedvid.codecs.book import CodecBook
from pagedvid.correction.formula import BiasSource, QuantError, bias_source


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


@dataclass(frozen=True)
class LayerReads:
    """What is looked up once for one layer of a group; all denoise steps of the same chunk use it."""

    kernels: tuple[PageKernels, PageKernels]
    """Of keys and of values."""
    pages: tuple[tuple[Tensor, Tensor], ...]
    """Key and value pages of every read, int32 [H, P] each."""
    errors: tuple[QuantError | None, ...]


class ChunkScratch:
    """Reads chunks. Each call of `decode` overwrites what the previous one returned."""

    def __init__(self, pool: PagePool, spec: CacheSpec, book: CodecBook) -> None:
        self._pool = pool
        self._spec = spec
        self._book = book
        self._reads: WeakKeyDictionary[ReadGroup, dict[int, LayerReads]] = WeakKeyDictionary()
        self._scratch = Scratch(pool.device)

    def decode(self, group: ReadGroup, number: int, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(keys, values) [n, H, D] of read `number`; keys rotated."""
        shape = (group.reads[number].chunk.num_tokens, self._spec.num_kv_heads, self._spec.head_dim)
        keys, values = (self._scratch.buffer(kind, shape, dtype) for kind in KINDS)
        rotation, reads = group.rotation_of(layer), self._layer_reads(group, layer)
        frame_row = 0 if rotation is None else rotation.frame_rows[number]
        key_pages, value_pages = reads.pages[number]
        reads.kernels[0].decode(self._pool.records, key_pages, keys, rotation, frame_row)
        reads.kernels[1].decode(self._pool.records, value_pages, values)
        return saturated(keys), saturated(values)

    def is_corrected(self, group: ReadGroup, layer: int) -> bool:
        """Whether the scores of a layer's keys are corrected."""
        return self._source(group, layer) is not None

    def quant_error(self, group: ReadGroup, number: int, layer: int) -> QuantError | None:
        """Quant error of the keys of read `number`; None: nothing is corrected."""
        return self._layer_reads(group, layer).errors[number]

    def quant_error_of_tokens(self, group: ReadGroup, number: int, layer: int, tokens: slice) -> QuantError | None:
        """The same for consecutive tokens of the chunk."""
        reads = self._layer_reads(group, layer)
        return self._error(group, number, layer, reads.kernels[0], reads.pages[number][0], tokens)

    def _source(self, group: ReadGroup, layer: int) -> BiasSource | None:
        codec = group.codecs.of("keys", layer)
        return bias_source(self._spec.correction, codec, has_rope=group.rotation is not None)

    def _layer_reads(self, group: ReadGroup, layer: int) -> LayerReads:
        layers = self._reads.setdefault(group, {})
        if layer not in layers:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                layers[layer] = self._look_up(group, layer)
        return layers[layer]

    def _look_up(self, group: ReadGroup, layer: int) -> LayerReads:
        codecs = self._book.pair(group.codecs, layer, slice(0, self._spec.num_kv_heads))
        keys, values = (self._book.kernels(codec, self._pool.device) for codec in codecs)
        tables = [read.chunk.table for read in group.reads]
        pages = [tuple(table.layer_on(self._pool.device, kind, layer) for kind in KINDS) for table in tables]
        errors = tuple(
            self._error(group, number, layer, keys, pages[number][0], slice(0, read.chunk.num_tokens))
            for number, read in enumerate(group.reads)
        )
        return LayerReads((keys, values), tuple((each[0], each[1]) for each in pages), errors)

    def _error(
        self, group: ReadGroup, number: int, layer: int, kernels: PageKernels, key_pages: Tensor, tokens: slice
    ) -> QuantError | None:
        source = self._source(group, layer)
        if source is None:
            return None
        return source.quant_error(
            lambda: kernels.mean_square_step_sizes(self._pool.records, key_pages, tokens),
            None if group.variance is None else group.variance[layer, number],
            kernels.axes,
            None if group.alpha is None else group.alpha[layer, number],
        )
