"""Heads for tokens and back: the two all-to-all exchanges around attention, as a reference and as collectives.

    every rank has          exchange            every rank attends with
    t tokens, all heads     -> heads_for_tokens     all tokens, its heads
    all tokens, its heads   -> tokens_for_heads     t tokens, all heads      (the outputs)
    all tokens, its heads   -> gather_heads         all tokens, all heads    (for ranks that compute all tokens)

The tokens of a step are cut into pieces of t = ceil(T / n), rank by rank; the last pieces may be shorter or empty.
Shorter ones are padded on the way, because all-to-all moves equal pieces; padding is cut off on arrival.

Axes: n ranks, T tokens of the step, t of a rank, H heads, h heads of a rank, D head_dim; ... any leading axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor


def piece_tokens(num_tokens: int, num_ranks: int) -> int:
    """t."""
    return -(-num_tokens // num_ranks)


def piece_of(rank: int, num_tokens: int, num_ranks: int) -> slice:
    """The tokens of a rank, without padding."""
    size = piece_tokens(num_tokens, num_ranks)
    return slice(min(rank * size, num_tokens), min((rank + 1) * size, num_tokens))


# ---------------------------------------------------------------------- the reference: lists in order of ranks


def heads_for_tokens(parts_tHD: Sequence[Tensor]) -> list[Tensor]:
    """[t, H, D] of every rank -> [T, h, D] of every rank."""
    return list(torch.cat(list(parts_tHD)).chunk(len(parts_tHD), dim=1))


def tokens_for_heads(parts_ThD: Sequence[Tensor]) -> list[Tensor]:
    """[..., T, h, D] of every rank -> [..., t, H, D] of every rank."""
    whole, num_ranks = gather_heads(parts_ThD), len(parts_ThD)
    return [whole[..., piece_of(rank, whole.shape[-3], num_ranks), :, :] for rank in range(num_ranks)]


def gather_heads(parts_ThD: Sequence[Tensor]) -> Tensor:
    """[..., T, h, D] of every rank -> [..., T, H, D], the same for all."""
    return torch.cat(list(parts_ThD), dim=-2)


# ---------------------------------------------------------------------- collectives


@dataclass
class Traffic:
    """What a rank has sent to others."""

    num_exchanges: int = 0
    sent_bytes: int = 0
    """Padding included. A rank receives as many."""


@dataclass(frozen=True)
class Exchange:
    """The same with the other ranks of a process group; every rank makes the same calls in the same order."""

    group: dist.ProcessGroup
    traffic: Traffic = field(default_factory=Traffic)

    @property
    def rank(self) -> int:
        """Of this process in the group."""
        return dist.get_rank(self.group)

    @property
    def num_ranks(self) -> int:
        """n."""
        return dist.get_world_size(self.group)

    def heads_for_tokens(self, x_tHD: Sequence[Tensor], num_tokens: int) -> list[Tensor]:
        """Of several tensors of one dtype, such as q, k and v, in one exchange: [t, H, D] each -> [T, h, D] each."""
        size, num_ranks = piece_tokens(num_tokens, self.num_ranks), self.num_ranks
        by_rank = [x.unflatten(1, (num_ranks, -1)).transpose(0, 1) for x in x_tHD]  # [n, t, h, D] each
        sent_nthD = by_rank[0].new_zeros((num_ranks, size, sum(x.shape[2] for x in by_rank), by_rank[0].shape[3]))
        torch.cat(by_rank, dim=2, out=sent_nthD[:, : len(x_tHD[0])])
        together_ThD = self._all_to_all(sent_nthD).flatten(0, 1)[:num_tokens]
        return list(together_ThD.split([x.shape[2] for x in by_rank], dim=1))

    def tokens_for_heads(self, x_ThD: Tensor) -> Tensor:
        """[..., T, h, D] -> [..., t, H, D]."""
        num_tokens, num_ranks = x_ThD.shape[-3], self.num_ranks
        size = piece_tokens(num_tokens, num_ranks)
        sent_nthD = x_ThD.new_zeros((*x_ThD.shape[:-3], num_ranks * size, *x_ThD.shape[-2:]))
        sent_nthD[..., :num_tokens, :, :] = x_ThD
        by_rank = sent_nthD.unflatten(-3, (num_ranks, size)).movedim(-4, 0).contiguous()  # [n, ..., t, h, D]
        own = piece_of(self.rank, num_tokens, num_ranks)
        return _side_by_side(self._all_to_all(by_rank))[..., : own.stop - own.start, :, :]

    def gather_heads(self, x_ThD: Tensor) -> Tensor:
        """[..., T, h, D] -> [..., T, H, D]."""
        sent = x_ThD.contiguous()
        received = sent.new_empty((self.num_ranks, *sent.shape))
        dist.all_gather([_as_bytes(piece) for piece in received], _as_bytes(sent), self.group)
        self._count(sent.nbytes * (self.num_ranks - 1))
        return _side_by_side(received)

    def _all_to_all(self, sent: Tensor) -> Tensor:
        """Piece r of the first axis goes to rank r, whose piece comes in its place."""
        received = torch.empty_like(sent)
        dist.all_to_all_single(_as_bytes(received), _as_bytes(sent), group=self.group)
        self._count(sent.nbytes // self.num_ranks * (self.num_ranks - 1))
        return received

    def _count(self, num_bytes: int) -> None:
        self.traffic.num_exchanges += 1
        self.traffic.sent_bytes += num_bytes


def _side_by_side(x_nThD: Tensor) -> Tensor:
    """[n, ..., T, h, D] -> [..., T, n * h, D]."""
    return x_nThD.movedim(0, -3).flatten(-3, -2)


def _as_bytes(x: Tensor) -> Tensor:
    """The same memory as uint8 [bytes]: backends differ in the dtypes that they know."""
    return x.view(-1).view(torch.uint8)


# ---------------------------------------------------------------------- bytes, exactly


def sent_bytes_of_whole(num_tokens: int, num_ranks: int, query_heads: int, head_dim: int, element_bytes: int) -> int:
    """What a rank that computes all tokens sends in one call of `attend` (one view): its heads' outputs."""
    return (num_ranks - 1) * num_tokens * (query_heads // num_ranks) * head_dim * element_bytes


def sent_bytes_of_split(
    num_tokens: int, num_ranks: int, query_heads: int, kv_heads: int, head_dim: int, element_bytes: int
) -> int:
    """What a rank that computes its own tokens sends in one call (one view): q, k, v of the others' heads, and the
    outputs of the others' tokens."""
    heads = 2 * (query_heads // num_ranks) + 2 * (kv_heads // num_ranks)
    return (num_ranks - 1) * piece_tokens(num_tokens, num_ranks) * heads * head_dim * element_bytes
