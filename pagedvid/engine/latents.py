"""The latents of one video, chunk by chunk, and the frames that a round carries of them.

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
    """What a chunk starts from, [chunk_tokens, C]."""
    chunks: dict[int, Tensor] = field(default_factory=dict)

    def begin(self, round_: Round) -> None:
        """Makes the chunks that a round carries first. Raises what `initial` raises."""
        size = self.geometry.frames_per_chunk
        for chunk in sorted({frame // size for part in round_.ranges for frame in part.frames}):
            if chunk not in self.chunks:
                self.chunks[chunk] = self.initial(chunk)

    def of(self, frames: Sequence[int]) -> Tensor:
        """Latents of some frames one after the other, [T, C]; of a whole chunk the tensor itself."""
        size, tokens = self.geometry.frames_per_chunk, self.geometry.tokens_per_frame
        chunk, first = divmod(frames[0], size)
        if first == 0 and list(frames) == list(range(frames[0], frames[0] + size)):
            return self.chunks[chunk]
        places = [divmod(frame, size) for frame in frames]
        return torch.cat([self.chunks[chunk][place * tokens : (place + 1) * tokens] for chunk, place in places])
