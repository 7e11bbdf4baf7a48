"""What rounding did to the attention mass of a chunk's keys, next to what the formula says: the data behind alpha.

Axes: H KV heads, S sampled queries, Q = G * S rows of the query heads of one KV head, n keys, F frames, D head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pagedvid.attention.projection import StepProjection
from pagedvid.cache.plan import PendingChunk, RangePlan
from pagedvid.quant.codec import Codec
from pagedvid.quant.correction import KeyNoise, QuerySquares, log_mass_shift
from pagedvid.quant.projective import map_points
from pagedvid.quant.rotary import RopeTables, turned

MEASURED_QUERIES = 32
"""Queries of the pass, evenly spread, on which alpha is fitted. More do no better (benchmarks/fidelity.py)."""


def sampled_offsets(range_: RangePlan, device: torch.device | str = "cpu") -> Tensor:
    """Tokens of a range whose queries measure alpha, counted from its first one, int64."""
    num_sampled = min(range_.num_tokens, MEASURED_QUERIES)
    return torch.arange(num_sampled, device=device) * (range_.num_tokens - 1) // max(1, num_sampled - 1)


@dataclass(frozen=True)
class StoredKeys(ABC):
    """Keys of one layer of one quantized chunk: as they are handed to the codec, and as it stores them."""

    exact_HnD: Tensor
    codec: Codec
    rope: RopeTables | None
    position: int
    """Where rotary embedding places the chunk's first token in this pass."""

    @abstractmethod
    def decoded(self) -> Tensor:
        """The keys as they are stored now, float32 [H, n, D]; decoded anew, so that nobody holds them longer."""

    @abstractmethod
    def step_square(self, num_tokens: int, first_token: int) -> Tensor | None:
        """Mean of step^2 over some of the tokens along `axes`, float32 [H, D]; None: there is no uniform grid."""

    @property
    @abstractmethod
    def axes(self) -> Tensor | None:
        """`codec.axes`, where the keys are."""

    def variance_change(self) -> Tensor:
        """Var k' - Var k of every channel over the chunk's tokens, float32 [H, D]."""
        return self.decoded().var(1, correction=0) - self.exact_HnD.var(1, correction=0)

    def noise(self, variance_change_HD: Tensor | None, num_tokens: int, first_token: int = 0) -> KeyNoise:
        """What alpha scales, of some of the tokens. `variance_change_HD`: what was kept, if anything was."""
        turns = self.rope is not None and not self.codec.stores_rotated
        return KeyNoise(self.step_square(num_tokens, first_token), variance_change_HD, self.axes, turns)


@dataclass(frozen=True)
class EncodedKeys(StoredKeys):
    """Keys that their codec decodes."""

    records_HPB: Tensor
    padded_tokens: int

    def decoded(self) -> Tensor:
        """See `StoredKeys`."""
        num_heads, num_tokens, head_dim = self.exact_HnD.shape
        buffer = torch.empty(num_heads, self.padded_tokens, head_dim, dtype=torch.float32, device=self.exact_HnD.device)
        return self.codec.decode(self.records_HPB, num_tokens, buffer)

    def step_square(self, num_tokens: int, first_token: int) -> Tensor | None:
        """See `StoredKeys`."""
        return self.codec.mean_square_steps(self.records_HPB, num_tokens, first_token)

    @property
    def axes(self) -> Tensor | None:
        """See `StoredKeys`."""
        return self.codec.axes


@dataclass(frozen=True)
class ProjectedQueries:
    """Sampled queries of a range for one projective view."""

    view: StepProjection
    q_SHD: Tensor
    """As the model gave them."""
    relative_SF44: Tensor
    """R = P_query P_key^-1 of each query and each frame of the chunk, float32."""


def sample_queries(
    view: StepProjection, range_: RangePlan, pending: PendingChunk, q_THD: Tensor, sampled: Tensor
) -> ProjectedQueries:
    """The queries of the packed tokens `sampled`, all of `range_`, and where they stand towards a pending chunk."""
    keys = view.chunk(pending.tag, pending.num_tokens, pending.index)
    queries = view.queries(range_.current[-1:])[0][sampled_offsets(range_) // view.tokens_per_frame]
    relative = (queries.unsqueeze(1) @ keys.unsqueeze(0)).float()
    return ProjectedQueries(view, q_THD[sampled], relative.to(q_THD.device))


def rotary_effect(
    keys: StoredKeys, variance_change_HD: Tensor | None, q_SHD: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """(true shift of log Z, b) of rotated queries, [H, Q] each."""
    exact, stored = keys.exact_HnD, keys.decoded()
    num_heads, num_tokens, _ = exact.shape
    b = keys.noise(variance_change_HD, num_tokens).bias(QuerySquares(by_kv_head(q_SHD, num_heads)), scale)
    if not keys.codec.stores_rotated:
        exact, stored = (turned(k, keys.rope, keys.position) for k in (exact, stored))
    shift = log_mass_shift(by_kv_head(q_SHD, num_heads), exact, stored, scale)
    return shift, b if isinstance(b, Tensor) else torch.zeros_like(shift)


def projected_effect(
    keys: StoredKeys, variance_change_HD: Tensor | None, queries: ProjectedQueries, scale: float
) -> tuple[Tensor, Tensor]:
    """(true shift of log Z, what subtracting b frame by frame takes from it), [H, Q] each."""
    num_heads, size = len(keys.exact_HnD), queries.view.tokens_per_frame
    decoded = keys.decoded()
    log_mass: list[list[Tensor]] = [[], [], []]
    for frame in range(queries.relative_SF44.shape[1]):
        tokens = slice(frame * size, (frame + 1) * size)
        pull = queries.relative_SF44[:, frame].mT
        q = by_kv_head(queries.view.in_page_order(map_points(queries.q_SHD.float(), pull)), num_heads)
        exact, stored = (torch.logsumexp(scale * q @ k[:, tokens].mT, dim=-1) for k in (keys.exact_HnD, decoded))
        # A pulled-back query meets keys as they are stored: no turn lies between.
        noise = replace(keys.noise(variance_change_HD, size, tokens.start), turns=False)
        b = noise.bias(QuerySquares(q), scale)
        for parts, value in zip(log_mass, (exact, stored, stored - b), strict=True):
            parts.append(value)
    exact, stored, corrected = (torch.stack(parts).logsumexp(0) for parts in log_mass)
    return stored - exact, stored - corrected


def by_kv_head(q_SHD: Tensor, num_kv_heads: int) -> Tensor:
    """Queries [S, Hq, D] as float32 rows of their KV head, [H, Q, D]."""
    return q_SHD.float().unflatten(1, (num_kv_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2)
