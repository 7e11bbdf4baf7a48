"""What rounding did to the attention mass of a chunk's keys, next to what the formula says: the data behind alpha.

Axes: H KV heads, S sampled queries, Q = G * S rows of the query heads of one KV head, n keys, F frames, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.attention.projection import StepProjection
from pagedvid.cache.plan import PendingChunk, RangePlan
from pagedvid.geometry import page_tokens, pages_for_tokens
from pagedvid.quant.codec import Codec
from pagedvid.quant.correction import bias, log_mass_shift
from pagedvid.quant.projective import map_points
from pagedvid.quant.rotary import RopeTables, pair_mean_square, rotate


@dataclass(frozen=True)
class StoredKeys:
    """Keys of one layer of one quantized chunk, before rotary embedding, in page order."""

    exact_HnD: Tensor
    codec: Codec
    records_HPB: Tensor

    def decoded(self) -> Tensor:
        """The keys as they are stored now, float32 [H, n, D]; decoded anew, so that nobody holds them longer."""
        num_heads, num_tokens, head_dim = self.exact_HnD.shape
        padded = pages_for_tokens(num_tokens, self.codec.name) * page_tokens(self.codec.name)
        buffer = torch.empty(num_heads, padded, head_dim, device=self.exact_HnD.device)
        return self.codec.decode(self.records_HPB, num_tokens, buffer)

    def mean_square_steps(self, num_tokens: int, first_token: int = 0) -> Tensor:
        """[H, D] of some of the tokens."""
        step_square = self.codec.mean_square_steps(self.records_HPB, num_tokens, first_token)
        assert step_square is not None  # only quantized chunks have an alpha
        return step_square


@dataclass(frozen=True)
class ProjectedQueries:
    """Sampled queries of a range for one projective view."""

    view: StepProjection
    q_SHD: Tensor
    """As the model gave them."""
    relative_SF44: Tensor
    """R = P_query P_key^-1 of each query and each frame of the chunk, float64."""


def sample_queries(
    view: StepProjection, range_: RangePlan, pending: PendingChunk, q_THD: Tensor, sampled: Tensor
) -> ProjectedQueries:
    """The queries of the packed tokens `sampled`, all of `range_`, and where they stand towards a pending chunk."""
    keys = view.chunk(pending.tag, pending.num_tokens, pending.index)
    query_frames = (sampled.cpu() - range_.start) // view.tokens_per_frame
    queries = view.queries(range_.current[-1:])[0][query_frames]
    return ProjectedQueries(view, q_THD[sampled], queries.unsqueeze(1) @ keys.unsqueeze(0))


def rotary_effect(
    keys: StoredKeys, q_SHD: Tensor, rope: RopeTables | None, position: int, scale: float
) -> tuple[Tensor, Tensor]:
    """(true shift of log Z, b) of rotated queries, [H, Q] each."""
    exact, stored = keys.exact_HnD, keys.decoded()
    num_heads, num_tokens, _ = exact.shape
    step_square = keys.mean_square_steps(num_tokens)
    q = q_SHD.float().unflatten(1, (num_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)
    if rope is not None:
        cos, sin = (table.to(exact.device) for table in rope.tables(position, num_tokens))
        exact, stored = rotate(exact, cos, sin), rotate(stored, cos, sin)
    q_square = q.square() if rope is None else pair_mean_square(q)
    return log_mass_shift(q, exact, stored, scale), bias(q_square, step_square, scale)


def projected_effect(keys: StoredKeys, queries: ProjectedQueries, scale: float) -> tuple[Tensor, Tensor]:
    """(true shift of log Z, what subtracting b frame by frame takes from it), [H, Q] each."""
    num_heads, size = len(keys.exact_HnD), queries.view.tokens_per_frame
    decoded = keys.decoded()
    log_mass: list[list[Tensor]] = [[], [], []]
    for frame in range(queries.relative_SF44.shape[1]):
        tokens = slice(frame * size, (frame + 1) * size)
        pulled_back = map_points(
            queries.q_SHD.float(), queries.relative_SF44[:, frame].mT.float().to(queries.q_SHD.device)
        )
        q = queries.view.in_page_order(pulled_back).unflatten(1, (num_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)
        exact, stored = (torch.logsumexp(scale * q @ k[:, tokens].mT, dim=-1) for k in (keys.exact_HnD, decoded))
        b = bias(q.square(), keys.mean_square_steps(size, tokens.start), scale)
        for parts, value in zip(log_mass, (exact, stored, stored - b), strict=True):
            parts.append(value)
    exact, stored, corrected = (torch.stack(parts).logsumexp(0) for parts in log_mass)
    return stored - exact, stored - corrected
