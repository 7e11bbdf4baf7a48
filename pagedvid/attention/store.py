"""Writes whole layers of chunks to pages in a commit pass, and reads them back.

Codecs get keys before rotary embedding and in half layout, unless they store them rotated. What the correction needs
besides the pages is measured here, where both the exact and the stored keys are at hand:

    variance   Var k' - Var k of every channel over the chunk's tokens
    alpha      the factor on b that leaves the chunk its share of attention, measured with queries of this very pass in
               place of those that will read it (correction/fit.py, measure.py). A chunk that is read in several views
               has one factor, fitted to the queries of all of them
    runs       neighbouring pages whose b is about the same, where the correction's unit is the page (page_runs.py)

Heads of a layer may be stored in different codecs: each run of heads that are stored alike is written, and measured, as
if it were all of the layer.

On a GPU nothing waits for the device before the last layer. Whether all values could be stored is read then, once, and
the runs of all layers, once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property, partial
from itertools import pairwise
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pagedvid.attention.measure import (
    Effect,
    ProjectedQueries,
    StoredKeys,
    copy_correction,
    effect_of_views,
    fit_chunk,
)
from pagedvid.attention.page_runs import cut_by_both, mean_bias_of_pages, runs_of_layers
from pagedvid.attention.rotation import Readers, Rotation
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import PendingChunk
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.base import Codec, PageKernels
from pagedvid.codecs.book import CodecBook
from pagedvid.correction.formula import QuantError, bias_source
from pagedvid.errors import NonFiniteError, StateError
from pagedvid.rotary.checked import Ropes
from pagedvid.rotary.tables import Arrival, RopeTables, rotated_at

TOGETHER_VALUES = 2**19
"""Most numbers (tokens x heads x head_dim) encoded in one call: beyond it, the cost of a call is negligible anyway."""


@dataclass(frozen=True)
class Writing:
    """One layer of a pending chunk as it arrives."""

    pending: PendingChunk
    readers: Readers | None
    """Sampled queries of the range (`Rotation.as_reading`); None where nothing is measured with them."""
    k_nHD: Tensor
    """As the model gave them."""
    v_nHD: Tensor
    arrival: Arrival = field(default_factory=Arrival)
    projected: Sequence[ProjectedQueries] = ()
    """The same queries for every further view in which the chunk will be read."""

    def of_heads(self, heads: slice) -> Writing:
        """Some of its KV heads, and the queries of their query heads."""
        if heads == slice(0, self.k_nHD.shape[1]):
            return self
        given = replace(self, k_nHD=self.k_nHD[:, heads], v_nHD=self.v_nHD[:, heads])
        if self.readers is None:
            return given
        group = self.readers.here_SHD.shape[1] // self.k_nHD.shape[1]
        queries = slice(heads.start * group, heads.stop * group)
        projected = [replace(each, q_SHD=each.q_SHD[:, queries]) for each in self.projected]
        return replace(given, readers=self.readers.of_heads(queries), projected=projected)


@dataclass
class Noted:
    """What the layers of a pending chunk leave for the end of its commit pass."""

    flags: list[tuple[str, int, slice, Tensor]] = field(default_factory=list)
    """(kind, layer, heads, uint8 [H, F]), set where values could not be stored."""
    effects: list[tuple[int, slice, Effect]] = field(default_factory=list)
    """(layer, heads, effect), for alpha."""
    page_bias: list[tuple[int, int, Tensor]] = field(default_factory=list)
    """(layer, tokens of a page, mean b of every page, float32 [P, H])."""


@dataclass(frozen=True)
class LayerStore:
    """Whole layers of chunks, in and out of the pool. Axes: H KV heads, n tokens, P pages, D head_dim."""

    pool: PagePool
    spec: CacheSpec
    book: CodecBook
    uses_kernels: bool
    """Whether pages are read and written by their codecs' kernels, or by PyTorch operations."""
    _noted: WeakKeyDictionary[PendingChunk, Noted] = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    @cached_property
    def ropes(self) -> Ropes:
        """Checked rotary tables on the pool's device."""
        return Ropes(self.spec.head_dim // 2, self.pool.device)

    def write(self, layer: int, writings: Sequence[Writing], rotation: Rotation) -> None:
        """Stores one layer of pending chunks; small ones of equal length and codecs are encoded in one call.

        Raises NonFiniteError naming layer and heads (on a GPU in the last layer only), StateError when the layer has
        been written already.
        """
        for writing in writings:
            pending = writing.pending
            if layer in pending.layers_written:
                raise StateError(f"layer {layer} of chunk {pending.chunk.index} was attended twice in one commit pass")
        for batch in self._batches(writings):
            for heads in self._runs([writing.pending for writing in batch], layer):
                self._write_heads(layer, heads, [writing.of_heads(heads) for writing in batch], rotation)
        for writing in writings:
            writing.pending.layers_written.add(layer)
            writing.pending.chunk.ropes[layer] = rotation.rope
            if len(writing.pending.layers_written) == self.spec.num_layers:
                self._finish(writing.pending)

    def _batches(self, writings: Sequence[Writing]) -> list[list[Writing]]:
        """Neighbours of equal length and codecs, up to TOGETHER_VALUES; larger chunks, and those that kernels write, go
        alone."""
        batches: list[list[Writing]] = []
        for writing in writings:
            chunk = writing.pending.chunk
            most = TOGETHER_VALUES // (chunk.num_tokens * self.spec.num_kv_heads * self.spec.head_dim)
            first = batches[-1][0].pending.chunk if batches and not self.uses_kernels else None
            is_alike = first and (first.num_tokens, first.codecs) == (chunk.num_tokens, chunk.codecs)
            if is_alike and len(batches[-1]) < most:
                batches[-1].append(writing)
            else:
                batches.append([writing])
        return batches

    def _runs(self, pending: Sequence[PendingChunk], layer: int) -> list[slice]:
        """Neighbouring heads that are stored alike, and were before in a chunk that is stored again; without those that
        keep nothing."""
        codecs = pending[0].chunk.codecs
        stored = (codecs, *(each.source.codecs for each in pending if each.source is not None))
        bounds = {
            bound for each in stored for run, _ in each.runs(layer, self._all_heads) for bound in (run.start, run.stop)
        }
        runs = [slice(start, stop) for start, stop in pairwise(sorted(bounds))]
        return [heads for heads in runs if codecs.at(layer, heads.start) is not None]

    def _write_heads(self, layer: int, heads: slice, batch: Sequence[Writing], rotation: Rotation) -> None:
        """Stores heads that are stored alike; `batch` holds these heads alone."""
        codec = self._codec(batch[0].pending.chunk, "keys", layer, heads)
        pending = [writing.pending for writing in batch]
        if len(batch) == 1 and self._can_take_as_given(batch[0], codec):
            self._encode(pending, "keys", layer, heads, batch[0].k_nHD, batch[0].arrival)
            self._encode(pending, "values", layer, heads, batch[0].v_nHD)
            return
        keys, values = [], []
        for writing in batch:
            k_HnD, v_HnD = self._arrived(writing, layer, heads, rotation)
            if codec.spec.stores_rotated:  # in float32, whatever the keys arrive in
                k_HnD = rotation.at(k_HnD.float(), writing.pending.chunk.position)
            keys.append(k_HnD)
            values.append(v_HnD)
        self._store(pending, "keys", layer, heads, keys)
        self._store(pending, "values", layer, heads, values)
        for writing, exact_HnD in zip(batch, keys, strict=True):
            if self._keeps_codec(writing.pending, "keys", layer, heads):
                copy_correction(writing.pending, layer, heads)
            elif self._is_measured(writing.pending, codec):
                stored = self._stored_keys(writing.pending.chunk, layer, heads, exact_HnD.float(), rotation)
                self._note_correction(writing, layer, heads, stored, rotation)

    def _can_take_as_given(self, writing: Writing, codec: Codec) -> bool:
        """Whether one kernel puts keys in half layout, un-rotates, encodes and writes them: nothing else needs them."""
        takes = self._access(codec).takes_arrivals and not codec.spec.stores_rotated
        return takes and writing.pending.source is None and not self._is_measured(writing.pending, codec)

    def _is_measured(self, pending: PendingChunk, key_codec: Codec) -> bool:
        """Whether the correction needs something measured of these keys at commit."""
        chunk = pending.chunk
        measures = chunk.alpha is not None or chunk.variance is not None or self.spec.correction_unit == "page"
        return key_codec.spec.is_quantized and self.spec.correction != "off" and measures

    def _arrived(self, writing: Writing, layer: int, heads: slice, rotation: Rotation) -> tuple[Tensor, Tensor]:
        """Keys (before rotary embedding, in half layout) and values, float32 [H, n, D]."""
        if writing.pending.source is not None:
            return self.read(writing.pending.source, layer, rotation.stored_by, heads)
        k_nHD = writing.arrival.plain(writing.k_nHD)
        return k_nHD.transpose(0, 1).float(), writing.v_nHD.transpose(0, 1).float()

    def _store(
        self, pending: Sequence[PendingChunk], kind: str, layer: int, heads: slice, x_HnD: Sequence[Tensor]
    ) -> None:
        """Encodes and writes, or copies the pages of a chunk that keeps its codec."""
        if not any(self._keeps_codec(each, kind, layer, heads) for each in pending):
            together = x_HnD[0] if len(x_HnD) == 1 else torch.cat(list(x_HnD))
            self._encode(pending, kind, layer, heads, together.transpose(0, 1))
            return
        for each, x in zip(pending, x_HnD, strict=True):
            if self._keeps_codec(each, kind, layer, heads):
                self._copy(each, kind, layer, heads)
            else:
                self._encode([each], kind, layer, heads, x.transpose(0, 1))

    def _encode(
        self,
        pending: Sequence[PendingChunk],
        kind: str,
        layer: int,
        heads: slice,
        x_nHD: Tensor,
        arrival: Arrival | None = None,
    ) -> None:
        """Encodes and writes chunks of equal length and codecs; `x_nHD` has the heads of one chunk after the other."""
        codec = self._codec(pending[0].chunk, kind, layer, heads)
        pages = [self._pages(each.chunk, kind, layer, heads) for each in pending]
        pages_HP = pages[0] if len(pages) == 1 else torch.cat(pages)
        try:
            flags = self._access(codec).encode(x_nHD, self.pool.records, pages_HP, arrival)
        except NonFiniteError as error:
            num_heads = heads.stop - heads.start
            chunk = pending[error.rows[0] // num_heads].chunk
            rows = (row % num_heads for row in error.rows if row // num_heads == error.rows[0] // num_heads)
            bad = tuple(heads.start + row for row in rows)
            raise _not_storable(chunk, kind, layer, bad, codec, f": {error}") from error
        if flags is not None:
            self._of(pending[0]).flags.append((kind, layer, heads, flags))

    def _keeps_codec(self, pending: PendingChunk, kind: str, layer: int, heads: slice) -> bool:
        """Whether a recoded chunk keeps its codec here; its bytes are then copied, as nothing is quantized twice."""
        source, chunk = pending.source, pending.chunk
        before = None if source is None else source.codecs.at(layer, heads.start)
        after = chunk.codecs.at(layer, heads.start)
        if source is None or before is None or after is None or before.of(kind) != after.of(kind):
            return False
        is_rotated = kind == "keys" and after.keys.stores_rotated
        return not is_rotated or source.position == chunk.position

    def _copy(self, pending: PendingChunk, kind: str, layer: int, heads: slice) -> None:
        """Copies the bytes of the source chunk."""
        assert pending.source is not None
        source, target = (self._pages(chunk, kind, layer, heads).flatten() for chunk in (pending.source, pending.chunk))
        self.pool.records.index_copy_(0, target.long(), self.pool.records.index_select(0, source))

    def read(
        self, chunk: Chunk, layer: int, rope: RopeTables | None, heads: slice | None = None
    ) -> tuple[Tensor, Tensor]:
        """Stored keys (before rotary embedding) and values of one layer of a chunk, float32 [H, n, D].

        `rope`: as at its commit; needed for codecs that store keys after rotary embedding. `heads`: which ones; None:
        all. Raises StateError when any of them keeps nothing of the chunk.
        """
        heads = self._all_heads if heads is None else heads
        runs = chunk.codecs.runs(layer, heads)
        for run, pair in runs:
            if pair is None:
                raise StateError(
                    f"KV heads {run.start} to {run.stop - 1} of layer {layer} keep nothing of chunk {chunk.index}; "
                    "read the other heads alone"
                )
        parts = [self._read_run(chunk, layer, run, rope) for run, _ in runs]
        keys, values = parts[0] if len(parts) == 1 else (torch.cat(each) for each in zip(*parts, strict=True))
        return keys, values

    def _read_run(self, chunk: Chunk, layer: int, heads: slice, rope: RopeTables | None) -> tuple[Tensor, Tensor]:
        """`read` of heads that are stored alike."""
        keys, values = (self._read(chunk, kind, layer, heads) for kind in ("keys", "values"))
        if self._codec(chunk, "keys", layer, heads).spec.stores_rotated:
            keys = rotated_at(keys, rope, chunk.position, backwards=True)
        return keys, values

    def quant_errors(
        self, chunk: Chunk, layer: int, heads: slice | None = None, *, has_rope: bool
    ) -> tuple[tuple[slice, QuantError], ...]:
        """Quant error of the keys of a whole chunk, alpha included, for each run of heads that are corrected alike."""
        runs = chunk.codecs.runs(layer, self._all_heads if heads is None else heads)
        errors = [(run, self._quant_error(chunk, layer, run, has_rope)) for run, pair in runs if pair is not None]
        return tuple((run, error) for run, error in errors if error is not None)

    def _quant_error(self, chunk: Chunk, layer: int, heads: slice, has_rope: bool) -> QuantError | None:
        codec = self._codec(chunk, "keys", layer, heads)
        source = bias_source(self.spec.correction, codec.spec, has_rope=has_rope)
        if source is None:
            return None

        def square_step_size() -> Tensor | None:
            square = self._square_step_sizes(chunk, layer, heads, chunk.num_tokens)
            return None if square is None else square[0]

        return source.quant_error(
            square_step_size,
            None if chunk.variance is None else chunk.variance[layer, heads],
            codec.axes,
            None if chunk.alpha is None else chunk.alpha[layer, heads],
        )

    def _square_step_sizes(self, chunk: Chunk, layer: int, heads: slice, part_tokens: int) -> Tensor | None:
        """Mean of step_size^2 over every part of that many tokens, float32 [F, H, D]; None: there are no step sizes."""
        codec, pages_HP = self._codec(chunk, "keys", layer, heads), self._pages(chunk, "keys", layer, heads)
        access, starts = self._access(codec), range(0, chunk.num_tokens, part_tokens)

        def of(pages_SHP: Tensor, first: int, end: int) -> Tensor | None:
            return access.mean_square_step_sizes(self.pool.records, pages_SHP, end - first, first)

        if part_tokens == codec.page_tokens and len(starts) > 1:  # full pages at once, as if each were a chunk
            full_PH1 = pages_HP[:, : len(starts) - 1].T.unsqueeze(2).contiguous()
            squares = [of(full_PH1, 0, part_tokens), of(pages_HP.unsqueeze(0), starts[-1], chunk.num_tokens)]
        else:
            ends = [*starts[1:], chunk.num_tokens]
            squares = [of(pages_HP.unsqueeze(0), *part) for part in zip(starts, ends, strict=True)]
        known = [square for square in squares if square is not None]
        return torch.cat(known) if known else None

    @cached_property
    def _all_heads(self) -> slice:
        return slice(0, self.spec.num_kv_heads)

    def _codec(self, chunk: Chunk, kind: str, layer: int, heads: slice) -> Codec:
        return self.book.pair(chunk.codecs, layer, heads)[kind == "values"]

    def _access(self, codec: Codec) -> PageKernels:
        return self.book.access(codec, self.pool.device, self.uses_kernels)

    def _pages(self, chunk: Chunk, kind: str, layer: int, heads: slice) -> Tensor:
        return chunk.table.layer_on(self.pool.device, kind, layer, heads)

    def _read(self, chunk: Chunk, kind: str, layer: int, heads: slice) -> Tensor:
        """Keys or values as they are stored by heads that are stored alike, float32 [H, n, D]."""
        codec, pages_SHP = self._codec(chunk, kind, layer, heads), self._pages(chunk, kind, layer, heads).unsqueeze(0)
        padded_tokens = pages_SHP.shape[2] * codec.page_tokens  # room for whole pages saves a copy
        shape = (1, 1, heads.stop - heads.start, padded_tokens, self.spec.head_dim)
        x_HnD = torch.empty(shape, dtype=torch.float32, device=self.pool.device)
        self._access(codec).decode(self.pool.records, pages_SHP, chunk.num_tokens, x_HnD.transpose(2, 3))
        return x_HnD[0, 0, :, : chunk.num_tokens]

    def _of(self, pending: PendingChunk) -> Noted:
        return self._noted.setdefault(pending, Noted())

    def _finish(self, pending: PendingChunk) -> None:
        """Called after a chunk's last layer."""
        noted = self._noted.pop(pending, None)
        if noted is None:
            return
        if noted.flags:
            self._require_storable(pending.chunk, noted.flags)
        if noted.effects:
            fit_chunk(pending.chunk, noted.effects)
        if not noted.page_bias:
            return
        chunk = pending.chunk
        for layer, runs in runs_of_layers(noted.page_bias, chunk.num_tokens).items():
            chunk.runs[layer] = cut_by_both(chunk.runs.get(layer, runs), runs)

    def _stored_keys(self, chunk: Chunk, layer: int, heads: slice, exact_HnD: Tensor, rotation: Rotation) -> StoredKeys:
        codec = self._codec(chunk, "keys", layer, heads)
        source = bias_source(self.spec.correction, codec.spec, has_rope=rotation.rope is not None)
        assert source is not None  # nothing is measured of keys that are never corrected
        square_step_size = cache(partial(self._square_step_sizes, chunk, layer, heads))
        angles = None if codec.spec.stores_rotated else rotation.angles(chunk.position, chunk.num_tokens)
        has_pages = self.spec.correction_unit == "page" and codec.spec.has_step_sizes and not source.by_variance
        part_tokens = codec.page_tokens if has_pages else chunk.num_tokens
        decode = partial(self._read, chunk, "keys", layer, heads)
        return StoredKeys(exact_HnD, source, angles, decode, square_step_size, self._access(codec).axes, part_tokens)

    def _note_correction(
        self, writing: Writing, layer: int, heads: slice, stored: StoredKeys, rotation: Rotation
    ) -> None:
        pending, readers = writing.pending, writing.readers
        alpha, variance = pending.chunk.alpha, pending.chunk.variance
        if variance is not None:
            variance[layer, heads] = stored.variance_change().to(variance)
        if stored.part_tokens < pending.chunk.num_tokens:
            bias_PH = mean_bias_of_pages(stored, readers, self.spec.scale)
            self._of(pending).page_bias.append((layer, stored.part_tokens, bias_PH))
        if alpha is None or readers is None:
            return
        kept = None if variance is None else variance[layer, heads].to(stored.exact_HnD)
        own_HnD = None
        if pending.source is not None:  # the readers' own chunk is another one
            own_HnD = writing.arrival.plain(writing.k_nHD).transpose(0, 1).float()
        effect = effect_of_views(stored, kept, readers, writing.projected, own_HnD, rotation, self.spec.scale)
        self._of(pending).effects.append((layer, heads, effect))

    def _require_storable(self, chunk: Chunk, flags: Sequence[tuple[str, int, slice, Tensor]]) -> None:
        by_head = [flag.bool().any(1) for *_, flag in flags]
        if not bool(torch.cat(by_head).any()):  # waits for the device
            return
        for (kind, layer, heads, _), bad in zip(flags, by_head, strict=True):
            rows: list[Any] = torch.nonzero(bad).flatten().tolist()
            if rows:
                named, codec = tuple(heads.start + row for row in rows), self._codec(chunk, kind, layer, heads)
                raise _not_storable(chunk, kind, layer, named, codec, ": values are NaN, infinite or too large")


def _not_storable(
    chunk: Chunk, kind: str, layer: int, heads: tuple[int, ...], codec: Codec, why: str
) -> NonFiniteError:
    return NonFiniteError(
        f"{kind} of layer {layer}, KV head {', '.join(map(str, heads))}, chunk {chunk.index} cannot be stored as "
        f"{codec.name}{why}. The commit was rolled back; look for an overflow in the model's forward.",
        heads,
    )
