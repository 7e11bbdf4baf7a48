"""The maps of one step: for every range and every chunk that it reads, one matrix per frame.

Axes: F frames, E ranges of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagedvid.cache.plan import Read, StepPlan
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.spec import CodecSpec
from pagedvid.errors import ShapeError, StateError
from pagedvid.rotary.projective import POINT_CHANNELS, Projection
from pagedvid.rotary.tables import to_half_layout


@dataclass(frozen=True)
class StepProjection:
    """A `Projection` with the maps of all ranges of a step looked up."""

    projection: Projection
    forward: tuple[Tensor, ...]
    """P of each range's frames, float64 [F, 4, 4]."""
    inverse: tuple[Tensor, ...]
    """P^-1 of each range's frames."""
    device: torch.device

    @staticmethod
    def of(plan: StepPlan, spec: CacheSpec, projection: Projection, device: torch.device) -> StepProjection:
        """Raises ShapeError when maps and tokens do not fit, StateError when keys arrive rotated."""
        if spec.keys_arrive == "rotated":
            raise StateError("a projection cannot read keys that arrive rotated; pass them before rotary embedding")
        if spec.head_dim % POINT_CHANNELS:
            raise ShapeError(f"head_dim is {spec.head_dim}; a projection needs a multiple of {POINT_CHANNELS}")
        maps = [_maps(projection, range_.tag, range_.num_tokens, f"range {i}") for i, range_ in enumerate(plan.ranges)]
        return StepProjection(projection, tuple(m[0] for m in maps), tuple(m[1] for m in maps), device)

    @property
    def tokens_per_frame(self) -> int:
        """Tokens that share one map."""
        return self.projection.tokens_per_frame

    def queries(self, ranges: Sequence[int]) -> Tensor:
        """P of the ranges' frames, float64 [E, F, 4, 4]; the ranges are equally long."""
        return torch.stack([self.forward[number] for number in ranges])

    def current(self, ranges: Sequence[int]) -> Tensor:
        """P^-1 of the ranges' frames, float64 [E, F, 4, 4]."""
        return torch.stack([self.inverse[number] for number in ranges])

    def stored(self, reads: Sequence[Read]) -> Tensor:
        """P^-1 of the frames of stored chunks, float64 [E, F, 4, 4]."""
        return torch.stack([self.chunk(read.chunk.tag, read.chunk.num_tokens, read.chunk.index) for read in reads])

    def chunk(self, tag: Any, num_tokens: int, index: int) -> Tensor:
        """P^-1 of the frames of one chunk, stored or about to be, float64 [F, 4, 4]."""
        return _maps(self.projection, tag, num_tokens, f"chunk {index}")[1]

    def in_page_order(self, x: Tensor) -> Tensor:
        """Queries or keys [..., D] in the channel order of the pages."""
        return to_half_layout(x, self.projection.layout)


def _maps(projection: Projection, tag: Any, num_tokens: int, name: str) -> tuple[Tensor, Tensor]:
    forward, inverse = projection.maps(tag)
    num_frames = num_tokens // projection.tokens_per_frame
    expected = (num_frames, POINT_CHANNELS, POINT_CHANNELS)
    if num_tokens % projection.tokens_per_frame or forward.shape != expected or inverse.shape != expected:
        raise ShapeError(
            f"{name} has {num_tokens} tokens, {projection.tokens_per_frame} per frame, and maps of shape "
            f"{tuple(forward.shape)} and {tuple(inverse.shape)}; expected is one [4, 4] map for each whole frame"
        )
    return forward, inverse


def rotated_keys_refused(codec: CodecSpec) -> StateError:
    """The error for a codec that stores keys after rotary embedding, since a projection needs them before it."""
    return StateError(
        f"{codec} stores keys after rotary embedding; a projection needs them before it. Use another codec for keys"
    )
