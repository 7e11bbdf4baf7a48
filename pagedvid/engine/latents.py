"""The latents of one video, chunk by chunk, and the selection of a range's frames.

Axes: T tokens in (frame, row, column) order, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Round


@dataclass
class Latents:
    """A chunk exists from the first round that carries one of its frames until it is forgotten."""

    geometry: ModelGeometry
    initial: Callable[[int], Tensor]
    """Chunk index -> initial latents, [chunk_tokens, C]."""
    chunks: dict[int, Tensor] = field(default_factory=dict)

    def begin(self, round_: Round) -> None:
        """Makes the chunks that this round is the first to carry. Raises what `initial` raises."""
        size = self.geometry.frames_per_chunk
        for chunk in sorted({frame // size for part in round_.ranges for frame in part.frames}):
            if chunk not in self.chunks:
                self.chunks[chunk] = self.initial(chunk)

    def of(self, frames: Sequence[int]) -> Tensor:
        """Latents of these frames, concatenated, [T, C]; for a whole chunk its tensor, not a copy."""
        size, tokens = self.geometry.frames_per_chunk, self.geometry.tokens_per_frame
        chunk, first = divmod(frames[0], size)
        if first == 0 and list(frames) == list(range(frames[0], frames[0] + size)):
            return self.chunks[chunk]
        places = [divmod(frame, size) for frame in frames]
        return torch.cat([self.chunks[chunk][place * tokens : (place + 1) * tokens] for chunk, place in places])
