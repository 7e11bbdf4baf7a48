"""How storing a chunk's keys changed their attention mass, and what the formula predicts: the data behind alpha.

The readers are sampled queries of the commit pass itself (correction/fit.py).

A chunk's keys fall into parts that have a b of their own: frames in a projective view, pages where the correction's
unit is the page, otherwise the whole chunk.

Axes: H KV heads, S sampled queries, Q = G * S rows of the query heads of one KV head, n keys, F parts, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from pagedvid.attention.projection import StepProjection
from pagedvid.attention.rotation import Readers, Rotation
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import PendingChunk, RangePlan
from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.heads import index_of
from pagedvid.correction.fit import fit_alpha, leave_out, log_mass, reader_log_odds
from pagedvid.correction.formula import BiasSource, QuantError, QuerySquares
from pagedvid.rotary.projective import map_points
from pagedvid.rotary.tables import rotate

MEASURED_QUERIES = 32
"""Queries of the pass, evenly spread, on which alpha is fitted. More do not help (benchmarks/fidelity.py)."""


def sampled_offsets(num_tokens: int, device: torch.device | str = "cpu") -> Tensor:
    """Tokens of a range whose queries measure alpha, counted from its first one, int64 [S]; S is at most
    MEASURED_QUERIES."""
    num_sampled = min(num_tokens, MEASURED_QUERIES)
    return torch.arange(num_sampled, device=device) * (num_tokens - 1) // max(1, num_sampled - 1)


@dataclass(frozen=True)
class StoredKeys:
    """Keys of one layer of one quantized chunk: as the codec was given them, and as it stores them."""

    exact_HnD: Tensor
    source: BiasSource
    """Where their bias comes from."""
    angles: tuple[Tensor, Tensor] | None
    """(cos, sin) of the chunk's positions in this pass; None: keys are not rotated after storage."""
    decode: Callable[[], Tensor]
    """The keys as they are stored, float32 [H, n, D]; not cached, to limit peak memory."""
    square_step_size: Callable[[int], Tensor | None]
    """Mean of step_size^2 along `axes` over every part of that many tokens, float32 [F, H, D]; None: the codec has no
    step sizes."""
    axes: Tensor | None
    """`Codec.axes`, on the device of the keys."""
    part_tokens: int
    """Tokens of the parts that have a b of their own in a rotary view: a page, or the chunk."""

    def rotated(self, k_HnD: Tensor) -> Tensor:
        """These keys [H, n, D], exact or decoded, rotated to their positions in this pass."""
        return k_HnD if self.angles is None else rotate(k_HnD, *self.angles)

    def variance_change(self) -> Tensor:
        """Var k' - Var k of every channel over the chunk's tokens, float32 [H, D]."""
        return self.decode().var(1, correction=0) - self.exact_HnD.var(1, correction=0)

    def quant_error(self, source: BiasSource, variance_change_HD: Tensor | None, part_tokens: int) -> QuantError | None:
        """The error behind b of every part, [F, H, D], or [1, H, D] where it is the same for all.

        `variance_change_HD`: what the chunk keeps, if anything.
        """
        variance_change = None if variance_change_HD is None else variance_change_HD.unsqueeze(0)
        return source.quant_error(lambda: self.square_step_size(part_tokens), variance_change, self.axes)


@dataclass(frozen=True)
class ProjectedQueries:
    """Sampled queries of a range for one projective view."""

    view: StepProjection
    q_SHD: Tensor
    """As the model gave them."""
    chunk_SF44: Tensor
    """R = P_query P_key^-1 of each query and each frame of the pending chunk, float32."""
    here_SF44: Tensor
    """The same of each frame of the queries' own chunk."""
    own_tokens: Tensor | None
    """As `Readers.own_tokens`."""

    def pulled(self, maps_SF44: Tensor, num_kv_heads: int) -> list[Tensor]:
        """For each frame, the queries pulled back to it, float32 [H, Q, D]."""
        points = (map_points(self.q_SHD.float(), maps.mT) for maps in maps_SF44.unbind(1))
        return [by_kv_head(self.view.in_page_order(q_SHD), num_kv_heads) for q_SHD in points]

    def scores(self, k_HnD: Tensor, maps_SF44: Tensor, scale: float) -> Tensor:
        """Scores [H, Q, n] of pulled-back queries over keys as they are stored, not rotated."""
        frames = k_HnD.split(self.view.tokens_per_frame, dim=1)
        queries = self.pulled(maps_SF44, len(k_HnD))
        return torch.cat([scale * q @ k.mT for q, k in zip(queries, frames, strict=True)], dim=-1)


def sample_queries(
    view: StepProjection, range_: RangePlan, pending: PendingChunk, q_THD: Tensor, sampled: Tensor
) -> ProjectedQueries:
    """The queries at packed tokens `sampled` with their maps to the frames of a pending chunk.

    `q_THD`: all packed queries of the step. `sampled`: int64 [S], all in `range_`.
    """
    number = range_.current[-1]
    queries = view.queries([number])[0][sampled_offsets(range_.num_tokens) // view.tokens_per_frame].unsqueeze(1)
    here = (queries @ view.current([number])).float().to(q_THD.device)
    if pending.source is None:
        own_tokens = sampled - range_.start if range_.num_tokens > 1 else None
        return ProjectedQueries(view, q_THD[sampled], here, here, own_tokens)
    keys = view.chunk(pending.chunk.tag, pending.chunk.num_tokens, pending.chunk.index)
    chunk = (queries @ keys.unsqueeze(0)).float().to(q_THD.device)
    return ProjectedQueries(view, q_THD[sampled], chunk, here, None)


class Effect(NamedTuple):
    """What storing a chunk changed for its sampled readers, [H, Q] each."""

    log_odds: Tensor
    """Log-odds of the share of the unquantized keys (`reader_log_odds`)."""
    mass_shift: Tensor
    """Shift of log Z over the keys."""
    bias: Tensor
    """How much subtracting b lowers log Z."""

    @staticmethod
    def of_all(effects: Sequence[Effect]) -> Effect:
        """The effects of several views, readers one after the other."""
        return Effect(*(torch.cat(parts, dim=-1) for parts in zip(*effects, strict=True)))


def effect_of_views(
    keys: StoredKeys,
    variance_change_HD: Tensor | None,
    readers: Readers,
    projected: Sequence[ProjectedQueries],
    own_chunk: Callable[[], Tensor] | None,
    rotation: Rotation,
    scale: float,
) -> Effect:
    """The effect on the readers of all views, [H, Q] of each view after the other.

    `variance_change_HD`: what the chunk keeps, if anything. `own_chunk`: makes the keys of the readers' own chunk,
    float32 [H, n, D], before rotary embedding and in half layout, which are dropped before the stored keys are decoded;
    None: the readers' own chunk is the stored one. `scale`: of the softmax.
    """
    here: Sequence[Tensor | None] = [None] * (1 + len(projected))
    if own_chunk is not None:
        here = _log_masses_here(own_chunk(), readers, projected, rotation, scale)
    effects = [rotary_effect(keys, variance_change_HD, readers, here[0], scale)]
    for queries, log_mass_here in zip(projected, here[1:], strict=True):
        effects.append(projected_effect(keys, variance_change_HD, queries, log_mass_here, scale))
    return Effect.of_all(effects)


def _log_masses_here(
    own_HnD: Tensor, readers: Readers, projected: Sequence[ProjectedQueries], rotation: Rotation, scale: float
) -> list[Tensor]:
    """log Z over the keys of the readers' own chunk, [H, Q] of each view."""
    q = by_kv_head(readers.here_SHD, len(own_HnD))
    rotary = log_mass(q, rotation.at(own_HnD, readers.position), scale)
    return [rotary, *(queries.scores(own_HnD, queries.here_SF44, scale).logsumexp(-1) for queries in projected)]


def rotary_effect(
    keys: StoredKeys, variance_change_HD: Tensor | None, readers: Readers, log_mass_here: Tensor | None, scale: float
) -> Effect:
    """The effect on rotated queries. `log_mass_here` [H, Q]: log Z over their own chunk; None: it is `keys`."""
    num_heads = len(keys.exact_HnD)
    q = by_kv_head(readers.reading_SHD, num_heads)
    error = keys.quant_error(keys.source, variance_change_HD, keys.part_tokens)
    b_FHQ = None if error is None else error.bias(QuerySquares(q), scale)
    left_out = own_keys(readers.own_tokens, q)
    exact = keys.rotated(keys.exact_HnD)
    if log_mass_here is None:
        log_mass_here = log_mass(by_kv_head(readers.here_SHD, num_heads), exact, scale)
    before = log_mass(q, exact, scale, left_out)
    del exact  # room for the decoded keys
    stored = keys.rotated(keys.decode())
    stored = leave_out((q * scale) @ stored.mT, left_out)
    return _effect(before, log_mass_here, stored, b_FHQ, keys.part_tokens)


def projected_effect(
    keys: StoredKeys,
    variance_change_HD: Tensor | None,
    queries: ProjectedQueries,
    log_mass_here: Tensor | None,
    scale: float,
) -> Effect:
    """The effect on queries of a projective view, where b differs from frame to frame. Arguments and result
    are those of `rotary_effect`."""
    size = queries.view.tokens_per_frame
    exact = queries.scores(keys.exact_HnD, queries.chunk_SF44, scale)
    if log_mass_here is None:
        log_mass_here = exact.logsumexp(-1)
    left_out = own_keys(queries.own_tokens, exact)
    before = leave_out(exact, left_out).logsumexp(-1)
    del exact
    stored = leave_out(queries.scores(keys.decode(), queries.chunk_SF44, scale), left_out)
    error = keys.quant_error(replace(keys.source, rotates=False), variance_change_HD, size)
    b_FHQ = None
    if error is not None:
        pulled = torch.stack(queries.pulled(queries.chunk_SF44, len(keys.exact_HnD)))
        b_FHQ = error.bias(QuerySquares(pulled), scale)
    return _effect(before, log_mass_here, stored, b_FHQ, size)


def _effect(
    before_HQ: Tensor, log_mass_here: Tensor, stored_HQn: Tensor, b_FHQ: Tensor | None, part_tokens: int
) -> Effect:
    """From the log Z of the exact keys, the scores of the stored ones, and b of every part of them."""
    after = stored_HQn.logsumexp(-1)
    log_odds, shift = reader_log_odds(before_HQ, log_mass_here), after - before_HQ
    if b_FHQ is None or part_tokens >= stored_HQn.shape[-1]:
        return Effect(log_odds, shift, torch.zeros_like(shift) if b_FHQ is None else b_FHQ[0].expand_as(shift))
    filled = pad(stored_HQn, (0, -stored_HQn.shape[-1] % part_tokens), value=-torch.inf)
    stored_HQF = filled.unflatten(-1, (-1, part_tokens)).logsumexp(-1)
    return Effect(log_odds, shift, after - (stored_HQF - b_FHQ.permute(1, 2, 0)).logsumexp(-1))


def own_keys(own_tokens: Tensor | None, rows: Tensor) -> Tensor | None:
    """Own tokens of all query rows of a KV head, int64 [Q]; `rows` [H, Q, ...] hold the sampled queries G times."""
    return None if own_tokens is None else own_tokens.repeat(rows.shape[1] // len(own_tokens))


def by_kv_head(q_SHD: Tensor, num_kv_heads: int) -> Tensor:
    """Queries [S, Hq, D] as float32 rows of their KV head, [H, Q, D]."""
    return q_SHD.float().unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)


def copy_correction(pending: PendingChunk, layer: int, heads: Heads) -> None:
    """Copies what the source chunk keeps for the correction of some heads of one layer."""
    source, chunk = pending.source, pending.chunk
    assert source is not None
    if chunk.alpha is not None and source.alpha is not None:
        index = index_of(heads, chunk.alpha.device)
        chunk.alpha[layer, index] = source.alpha[layer, index]
    if chunk.variance is not None and source.variance is not None:
        index = index_of(heads, chunk.variance.device)
        chunk.variance[layer, index] = source.variance[layer, index]
    if layer in source.runs:
        chunk.runs[layer] = source.runs[layer]


def fit_chunk(chunk: Chunk, effects: Sequence[tuple[int, Heads, Effect]]) -> None:
    """Fits alpha to all layers at once: one fit per layer would take long compared with a small chunk's other work."""
    assert chunk.alpha is not None
    log_odds, shift, b = (torch.cat(parts) for parts in zip(*(effect for *_, effect in effects), strict=True))
    alpha = fit_alpha(log_odds, shift, b).to(chunk.alpha.device)
    for (layer, heads, _), alpha_H in zip(effects, alpha.split([len(each[2].bias) for each in effects]), strict=True):
        chunk.alpha[layer, index_of(heads, chunk.alpha.device)] = alpha_H
