"""What each choice of storage changes in the attention output of each head: one range, one layer, plain PyTorch.

Attention is computed separately over each cached chunk and over the current chunk, and the partials are merged by
log-sum-exp. So a chunk that is stored in another codec, or not seen, changes only its own partial.

Axes: C chunks; G query heads of a KV head; H KV heads; Q sampled queries; n tokens of a chunk; D head_dim; R rungs; W
recent chunks of the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pagedvid.codecs.base import Codec
from pagedvid.rotary.tables import rotate

Partials = Sequence[tuple[Tensor, Tensor]]
"""(out [G, H, Q, D], lse [G, H, Q]) over each of some chunks."""


@dataclass(frozen=True)
class CachedChunk:
    """A chunk that is read: keys before rotary embedding, and values, float32."""

    k_HnD: Tensor
    v_HnD: Tensor
    angles: tuple[Tensor, Tensor]
    """(cos, sin) of the positions where it is read, [n, D / 2]."""
    age: int
    """0: the newest committed chunk."""
    is_sink: bool

    def of_heads(self, heads: slice) -> CachedChunk:
        """Some of its heads."""
        return replace(self, k_HnD=self.k_HnD[heads], v_HnD=self.v_HnD[heads])


@dataclass(frozen=True)
class Reading:
    """Sampled queries, rotated, with everything that they see, exactly."""

    q_GHQD: Tensor
    own: tuple[Tensor, Tensor]
    """Partial over the current chunk: (out [G, H, Q, D], lse [G, H, Q])."""
    chunks: Sequence[CachedChunk]
    weights: Sequence[Tensor]
    """Attention weights over the tokens of each chunk, which sum to 1 within the chunk, [G, H, Q, n]."""
    partials: Partials
    """Over every chunk."""

    @staticmethod
    def of(q_GHQD: Tensor, own_k_HnD: Tensor, own_v_HnD: Tensor, chunks: Sequence[CachedChunk]) -> Reading:
        """From the rotated queries, and the rotated keys and the values of the current chunk, all float32."""
        weights, lse = zip(*(_weights(q_GHQD, rotate(each.k_HnD, *each.angles)) for each in chunks), strict=True)
        partials = [(w @ each.v_HnD, z) for w, z, each in zip(weights, lse, chunks, strict=True)]
        own_weights, own_lse = _weights(q_GHQD, own_k_HnD)
        return Reading(q_GHQD, (own_weights @ own_v_HnD, own_lse), chunks, weights, partials)

    def change(self, partials: Partials) -> Tensor:
        """Change of the output with these partials over chunks instead, float32 [G, H, Q, D]."""
        return _joined([self.own, *partials]) - _joined([self.own, *self.partials])

    def error(self, partials: Partials) -> Tensor:
        """Squared `change`, float32 [H]: summed over query heads and channels, mean over queries."""
        return self.change(partials).square().sum((0, 3)).mean(-1)

    def with_keys(self, codec: Codec, *, keeps_mass: bool) -> Partials:
        """Partials over chunks whose keys are stored by a codec.

        `keeps_mass`: whether a correction leaves every chunk its attention mass; it is taken to be exact then.
        """
        stored, partials = _stored(codec, [chunk.k_HnD for chunk in self.chunks]), []
        for chunk, k_HnD, (_, exact_lse) in zip(self.chunks, stored, self.partials, strict=True):
            weights, lse = _weights(self.q_GHQD, rotate(k_HnD, *chunk.angles))
            partials.append((weights @ chunk.v_HnD, exact_lse if keeps_mass else lse))
        return partials

    def with_values(self, codec: Codec) -> Partials:
        """Partials over chunks whose values are stored by a codec."""
        stored = _stored(codec, [chunk.v_HnD for chunk in self.chunks])
        exact = zip(self.weights, stored, self.partials, strict=True)
        return [(weights @ v_HnD, lse) for weights, v_HnD, (_, lse) in exact]

    def within(self, recent_chunks: int, *, keeps_sinks: bool) -> Partials:
        """Partials over the newest `recent_chunks` chunks and, with `keeps_sinks`, the sinks."""
        kept = [chunk.age < recent_chunks or (keeps_sinks and chunk.is_sink) for chunk in self.chunks]
        return [partial for partial, is_kept in zip(self.partials, kept, strict=True) if is_kept]


def key_errors(reading: Reading, codecs: Sequence[Codec], *, keeps_mass: bool) -> Tensor:
    """The error of keys stored by each codec, float32 [H, R]. `keeps_mass`: see `Reading.with_keys`."""
    return torch.stack([reading.error(reading.with_keys(codec, keeps_mass=keeps_mass)) for codec in codecs], dim=-1)


def value_errors(reading: Reading, codecs: Sequence[Codec]) -> Tensor:
    """The error of values stored by each codec, float32 [H, R]."""
    return torch.stack([reading.error(reading.with_values(codec)) for codec in codecs], dim=-1)


def window_errors(reading: Reading, recent_chunks: int) -> tuple[Tensor, Tensor]:
    """The error of seeing the newest 1 to `recent_chunks` chunks only, without and with sinks, float32 [H, 2, W].

    Also whether any chunk is left out, bool [2, W]: early in a video, a window may hold all chunks that there are.
    """
    seen = [
        reading.within(recent, keeps_sinks=sinks) for sinks in (False, True) for recent in range(1, recent_chunks + 1)
    ]
    leaves_out = torch.tensor([len(each) < len(reading.chunks) for each in seen], dtype=torch.bool)
    errors = torch.stack([reading.error(each) for each in seen], dim=-1)
    return errors.unflatten(-1, (2, -1)), leaves_out.view(2, -1)


def _stored(codec: Codec, chunks: Sequence[Tensor]) -> list[Tensor]:
    """Keys or values [H, n, D] of chunks as they are read from pages, float32."""
    together = [torch.stack(list(chunks))] if len({x.shape for x in chunks}) == 1 else [x[None] for x in chunks]
    stored: list[Tensor] = []
    for x_EHnD in together:
        num_tokens = x_EHnD.shape[2]
        rows_RnD = x_EHnD.flatten(0, 1)
        room = rows_RnD.new_empty(len(rows_RnD), codec.spec.padded_tokens(codec.page, num_tokens), x_EHnD.shape[3])
        stored += codec.decode(codec.encode(rows_RnD), num_tokens, room).view_as(x_EHnD).unbind(0)
    return stored


def _weights(q_GHQD: Tensor, k_HnD: Tensor) -> tuple[Tensor, Tensor]:
    """Attention weights [G, H, Q, n] and log-sum-exp [G, H, Q]."""
    scores = q_GHQD @ k_HnD.mT * q_GHQD.shape[-1] ** -0.5
    lse = scores.logsumexp(-1)
    return (scores - lse[..., None]).exp_(), lse


def _joined(partials: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over all keys from partials, [G, H, Q, D]."""
    outs, lses = zip(*partials, strict=True)
    shares = torch.stack(lses).softmax(0).unsqueeze(-1)
    return (torch.stack(outs) * shares).sum(0)
