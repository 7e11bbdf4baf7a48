"""The given frames that a video goes on from: a request's input "prefix", a table with

    frames    uint8 [N, height, width, 3], as many as whole chunks have (`PrefixFormat.num_frames`)

They are encoded when the video begins, and committed chunk by chunk before its first chunk is generated.

Axes: N pixel frames; T latent tokens in (frame, row, column) order, C latent channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from pagedvid.engine.protocol import PrefixFormat
from pagedvid.errors import ConfigError
from pagedvid.shown import shown

INPUT = "prefix"


@dataclass(frozen=True, eq=False)
class Prefix:
    """The given frames of one video."""

    frames_NHWC: Tensor
    num_chunks: int
    encode: Callable[[Tensor], Tensor]
    """Of the model: all frames -> their latents [T, C]."""

    @cached_property
    def latents_TC(self) -> Tensor:
        """Encoded when they are first asked for: videos that wait, or go on from a checkpoint, need none."""
        return self.encode(self.frames_NHWC)

    def chunk(self, index: int) -> Tensor:
        """The latents of one of its chunks, [chunk_tokens, C]."""
        return self.latents_TC.chunk(self.num_chunks)[index]


def read_prefix(
    inputs: Mapping[str, Any], format: PrefixFormat, encode: Callable[[Tensor], Tensor], model_name: str
) -> Prefix | None:
    """The given frames of a request; None: there are none. For `encode` see `Prefix`.

    Raises ConfigError for anything that is not as the module docstring says.
    """
    if INPUT not in inputs:
        return None
    given = inputs[INPUT]
    frames = given.get("frames") if isinstance(given, Mapping) else None
    if not isinstance(frames, Tensor) or len(given) != 1:
        raise ConfigError(
            f'the input "{INPUT}" is {shown(given)}; {model_name} takes a table with "frames", uint8 '
            "[N, height, width, 3]"
        )
    size = (format.frames.height, format.frames.width, 3)
    if frames.dtype != torch.uint8 or frames.ndim != 4 or frames.shape[1:] != size:
        raise ConfigError(
            f"the frames to go on from are {frames.dtype} {list(frames.shape)}; {model_name} takes uint8 "
            f"[N, {size[0]}, {size[1]}, 3]"
        )
    num_chunks = format.num_chunks(len(frames))
    if num_chunks == 0 or format.num_frames(num_chunks) != len(frames):
        raise ConfigError(
            f"there are {len(frames)} frames to go on from; {model_name} takes those of whole chunks: "
            f"{format.num_frames(1)}, {format.num_frames(2)}, {format.num_frames(3)}, ..."
        )
    return Prefix(frames, num_chunks, encode)
