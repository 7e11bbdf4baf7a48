"""What the correction needs besides the pages: measured in the commit pass, where both the exact and the stored keys
are at hand, and kept with the chunk.

    variance   Var k' - Var k of every channel over the chunk's tokens
    alpha      the factor on b that leaves the chunk its share of attention, measured with queries of this very pass in
               place of those that will read it (correction/fit.py, measure.py). A chunk that is read in several views
               has one factor, fitted to the queries of all of them
    runs       neighbouring pages whose b is about the same, where the correction's unit is the page (page_runs.py)

Heads whose keys share a codec are measured together, as if they were all of the layer. On a GPU, alpha and the runs of
all layers are fitted at the end, and only then does anything wait for the device.

Axes: H KV heads that share a codec, n tokens, F parts of a chunk, P pages of a head, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from pagedvid.attention.layer_pages import LayerPages
from pagedvid.attention.measure import Effect, ProjectedQueries, StoredKeys, effect_of_views, fit_chunk
from pagedvid.attention.page_runs import cut_by_both, mean_bias_of_pages, runs_of_layers
from pagedvid.attention.rotation import Readers, Rotation
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import PendingChunk
from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.heads import index_of, query_heads
from pagedvid.codecs.spec import CodecSpec
from pagedvid.correction.formula import QuantError, bias_source
from pagedvid.rotary.tables import Arrival


@dataclass(frozen=True)
class Writing:
    """One layer of a pending chunk as it arrives."""

    pending: PendingChunk
    readers: Readers | None
    """Sampled queries of the range (`Rotation.as_reading`); None where nothing is measured with them."""
    k_nHD: Tensor
    """[n, H, D] of all KV heads, in the dtype and the channel order in which the model gave them."""
    v_nHD: Tensor
    """The same of the values."""
    arrival: Arrival = field(default_factory=Arrival)
    projected: Sequence[ProjectedQueries] = ()
    """The same queries for every further view in which the chunk will be read."""

    def exact(self, heads: Heads) -> tuple[Tensor, Tensor]:
        """Keys (before rotary embedding, in half layout) and values of some KV heads, float32 [h, n, D]."""
        v_nhD = self.v_nHD[:, index_of(heads, self.v_nHD.device)]
        return self.exact_keys(heads), v_nhD.transpose(0, 1).float()

    def exact_keys(self, heads: Heads) -> Tensor:
        """The keys that `exact` gives, float32 [h, n, D]."""
        k_nhD = self.k_nHD[:, index_of(heads, self.k_nHD.device)]
        return self.arrival.plain(k_nhD).transpose(0, 1).float()

    def readers_of(self, heads: Heads) -> tuple[Readers | None, Sequence[ProjectedQueries]]:
        """Readers and projected queries of some KV heads: those of their query heads, [S, q, D]."""
        if self.readers is None or len(heads) == self.k_nHD.shape[1]:
            return self.readers, self.projected
        group = self.readers.here_SHD.shape[1] // self.k_nHD.shape[1]
        queries = index_of(query_heads(heads, group), self.k_nHD.device)
        projected = [replace(each, q_SHD=each.q_SHD[:, queries]) for each in self.projected]
        return self.readers.of_heads(queries), projected


@dataclass
class Noted:
    """What the layers of a pending chunk leave for the end of its commit pass."""

    effects: list[tuple[int, Heads, Effect]] = field(default_factory=list)
    """(layer, heads, effect), for alpha."""
    page_bias: list[tuple[int, int, Tensor]] = field(default_factory=list)
    """(layer, tokens of a page, mean b of every page, float32 [P, H])."""


@dataclass(frozen=True)
class CommitCorrection:
    """Measures the keys of pending chunks."""

    stored: LayerPages
    _noted: WeakKeyDictionary[PendingChunk, Noted] = field(default_factory=WeakKeyDictionary, init=False, repr=False)

    def measures(self, chunk: Chunk, keys: CodecSpec) -> bool:
        """Whether the correction needs something measured, at its commit, of a chunk's keys in this codec."""
        spec = self.stored.spec
        wants = chunk.alpha is not None or chunk.variance is not None or spec.correction_unit == "page"
        return keys.is_quantized and spec.correction != "off" and wants

    def note(self, writing: Writing, layer: int, heads: Heads, exact_HnD: Tensor, rotation: Rotation) -> None:
        """Measures keys that have just been stored. The chunk's variance is set now, alpha and runs by `finish`.

        `heads`: KV heads whose keys share a codec. `exact_HnD`: their keys as the codec was given them, float32.
        """
        pending, scale = writing.pending, self.stored.spec.scale
        noted, (readers, projected) = self._noted.setdefault(pending, Noted()), writing.readers_of(heads)
        alpha, variance = pending.chunk.alpha, pending.chunk.variance
        keys = self._stored_keys(pending.chunk, layer, heads, exact_HnD, rotation)
        if variance is not None:
            variance[layer, index_of(heads, variance.device)] = keys.variance_change().to(variance)
        if keys.part_tokens < pending.chunk.num_tokens:
            noted.page_bias.append((layer, keys.part_tokens, mean_bias_of_pages(keys, readers, scale)))
        if alpha is None or readers is None:
            return
        kept_HD = None if variance is None else variance[layer, index_of(heads, variance.device)].to(exact_HnD)
        # If the range stores its previous chunk again, the readers' own chunk is not the stored one.
        own_chunk = None if pending.source is None else partial(writing.exact_keys, heads)
        effect = effect_of_views(keys, kept_HD, readers, projected, own_chunk, rotation, scale)
        noted.effects.append((layer, heads, effect))

    def finish(self, pending: PendingChunk) -> None:
        """Sets alpha and the runs of pages of a chunk after its last layer. Waits for the device."""
        noted, chunk = self._noted.pop(pending, Noted()), pending.chunk
        if noted.effects:
            fit_chunk(chunk, noted.effects)
        if not noted.page_bias:
            return
        for layer, runs in runs_of_layers(noted.page_bias, chunk.num_tokens).items():
            chunk.runs[layer] = cut_by_both(chunk.runs.get(layer, runs), runs)

    def quant_errors(
        self, chunk: Chunk, layer: int, heads: Heads, *, has_rope: bool
    ) -> tuple[tuple[Heads, QuantError], ...]:
        """Quant error of the keys of a whole chunk, alpha included, for each group of heads whose keys share a codec;
        without groups that are not corrected."""
        groups = chunk.codecs.groups("keys", layer, heads)
        errors = [(group, self._quant_error(chunk, layer, group, has_rope)) for group, _ in groups]
        return tuple((group, error) for group, error in errors if error is not None)

    def _quant_error(self, chunk: Chunk, layer: int, heads: Heads, has_rope: bool) -> QuantError | None:
        codec = self.stored.codec(chunk, "keys", layer, heads)
        source = bias_source(self.stored.spec.correction, codec.spec, has_rope=has_rope)
        if source is None:
            return None

        def square_step_size() -> Tensor | None:
            square = self._square_step_sizes(chunk, layer, heads, chunk.num_tokens)
            return None if square is None else square[0]

        variance, alpha = (
            None if kept is None else kept[layer, index_of(heads, kept.device)]
            for kept in (chunk.variance, chunk.alpha)
        )
        return source.quant_error(square_step_size, variance, codec.axes, alpha)

    def _stored_keys(self, chunk: Chunk, layer: int, heads: Heads, exact_HnD: Tensor, rotation: Rotation) -> StoredKeys:
        spec, codec = self.stored.spec, self.stored.codec(chunk, "keys", layer, heads)
        source = bias_source(spec.correction, codec.spec, has_rope=rotation.rope is not None)
        assert source is not None  # nothing is measured of keys that are never corrected
        square_step_size = cache(partial(self._square_step_sizes, chunk, layer, heads))
        angles = None if codec.spec.stores_rotated else rotation.angles(chunk.position, chunk.num_tokens)
        has_pages = spec.correction_unit == "page" and codec.spec.has_step_sizes and not source.by_variance
        part_tokens = codec.page_tokens if has_pages else chunk.num_tokens
        decode = partial(self.stored.decoded, chunk, "keys", layer, heads)
        axes = self.stored.access(codec).axes
        return StoredKeys(exact_HnD, source, angles, decode, square_step_size, axes, part_tokens)

    def _square_step_sizes(self, chunk: Chunk, layer: int, heads: Heads, part_tokens: int) -> Tensor | None:
        """Mean of step_size^2 over every part of that many tokens, float32 [F, H, D]; None: there are no step sizes."""
        key = (chunk, "keys", layer, heads)
        codec, pages_HP, starts = (
            self.stored.codec(*key),
            self.stored.pages(*key),
            range(0, chunk.num_tokens, part_tokens),
        )
        access = self.stored.access(codec)

        def of(pages_SHP: Tensor, first: int, end: int) -> Tensor | None:
            return access.mean_square_step_sizes(self.stored.pool.records, pages_SHP, end - first, first)

        if part_tokens == codec.page_tokens and len(starts) > 1:  # full pages at once, as if each were a chunk
            full_PH1 = pages_HP[:, : len(starts) - 1].T.unsqueeze(2).contiguous()
            squares = [of(full_PH1, 0, part_tokens), of(pages_HP.unsqueeze(0), starts[-1], chunk.num_tokens)]
        else:
            ends = [*starts[1:], chunk.num_tokens]
            squares = [of(pages_HP.unsqueeze(0), *part) for part in zip(starts, ends, strict=True)]
        known = [square for square in squares if square is not None]
        return torch.cat(known) if known else None
