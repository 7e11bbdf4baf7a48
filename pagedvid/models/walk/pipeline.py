"""The walk model as a `VideoModel`: 64 x 64 frames of a map seen from above, 2 frames at a time.

Latents are the pixels themselves, one token for each cell of the map in view. The network predicts clean latents; a
denoise step is an Euler step of flow matching, x_t = (1 - t) * clean + t * noise. Actions reach the network as the
places of the tokens and in no other way: rotary.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import Attend, Decoder, FrameFormat, ModelGeometry, PrefixFormat
from pagedvid.engine.schedule import Range, Schedule
from pagedvid.errors import ConfigError, PromptError
from pagedvid.models.common.chunk_by_chunk import check_whole_chunks, chunk_noise
from pagedvid.models.common.prefix import INPUT
from pagedvid.models.common.stateless_decoder import StatelessDecoder
from pagedvid.models.walk.actions import Walk, read_walk
from pagedvid.models.walk.given import read_given
from pagedvid.models.walk.network import Transformer
from pagedvid.models.walk.rotary import WorldRotary
from pagedvid.models.walk.schedule import num_chunks_of, walk_schedule
from pagedvid.models.walk.spec import (
    CHUNK_TOKENS,
    FRAME_SIZE,
    FRAMES_PER_CHUNK,
    FRAMES_PER_SECOND,
    LATENT_CHANNELS,
    frames_of,
    geometry_of,
    levels_of,
    map_latents,
)
from pagedvid.shown import shown


@dataclass(frozen=True)
class WalkModel:
    """The walk model; `weights.load_walk` is the usual way to get one."""

    network: Transformer
    rope: WorldRotary
    geometry: ModelGeometry
    name: str = "walk"
    frames_per_second: float = FRAMES_PER_SECOND
    positions: str = "given"
    max_window_chunks: int = 2**31

    @staticmethod
    def of(network: Transformer) -> WalkModel:
        """Wrap a network, trained or not."""
        rope = WorldRotary(network.config.head_dim)
        return WalkModel(network.eval().requires_grad_(False), rope, geometry_of(network.config))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The network's blocks, in the order in which they run."""
        return list(self.network.blocks)

    def prepare(self, prompt: str, inputs: Mapping[str, Any], num_frames: int) -> Walk:
        """The walk that the prompt describes, and the frames to go on from. Raises PromptError, ConfigError."""
        if others := sorted(set(inputs) - {INPUT}):
            raise ConfigError(f"the walk model takes a prompt and frames to go on from; remove {', '.join(others)}")
        walk, given = read_walk(prompt), read_given(inputs, self._prefix_format(max_chunks=1))
        if given is not None and walk.map_seed is not None:
            raise PromptError(
                f"the walk goes on from given frames, and the prompt {shown(prompt)} names a map; leave out the one or "
                "the other"
            )
        return replace(walk, given=given)

    def continued(self, before: Walk, num_frames: int, after: Walk) -> Walk:
        """The walk `before`, which takes the actions of `after` from frame `num_frames` on. Raises PromptError."""
        return before.followed_by(num_frames, after)

    def prefix_format(self, window: Window) -> PrefixFormat:
        """Frames of a walk, as many chunks as the window keeps."""
        return self._prefix_format(window.max_chunks)

    def _prefix_format(self, max_chunks: int) -> PrefixFormat:
        return PrefixFormat(FrameFormat(FRAME_SIZE, FRAME_SIZE, FRAMES_PER_SECOND), FRAMES_PER_CHUNK, max_chunks)

    def schedule(self, condition: Walk, num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
        """Whole chunks that hold at least `num_frames`, after the given ones; the first one shows a map if the walk
        names one."""
        first_frame = 0 if condition.given is None else condition.given.num_frames
        places_F2 = condition.places(first_frame + num_chunks_of(num_frames) * FRAMES_PER_CHUNK)
        num_given = num_chunks_of(first_frame) if condition.map_seed is None else 1
        levels = levels_of(num_denoise_steps)
        return walk_schedule(places_F2, num_given=num_given, first_frame=first_frame, levels=levels, window=window)

    def initial_latents(self, condition: Walk, seed: int, chunk_index: int) -> Tensor:
        """Noise, [128, 192], on the network's device, or what is given."""
        if condition.given is not None and chunk_index < condition.given.prefix.num_chunks:
            return condition.given.prefix.chunk(chunk_index).to(self.network.patch_in.weight)
        if condition.map_seed is not None and chunk_index == 0:
            given = map_latents(condition.map_seed, condition.places(FRAMES_PER_CHUNK))
            return torch.from_numpy(given).to(self.network.patch_in.weight)
        return chunk_noise(CHUNK_TOKENS, LATENT_CHANNELS, seed, chunk_index).to(self.network.patch_in.weight)

    def forward(
        self, latents_TC: Tensor, ranges: Sequence[Range], conditions: Sequence[Walk], attend: Attend
    ) -> Tensor:
        """Clean latents [T, C] of the packed ranges, each of them one chunk of 128 tokens. Raises ShapeError."""
        check_whole_chunks(self.name, self.geometry, latents_TC, ranges)
        levels_N = torch.tensor([part.noise_level for part in ranges], dtype=torch.float32, device=latents_TC.device)
        return self.network(latents_TC, levels_N, attend)

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """Latents at the next level: the predicted clean latents, which are pixels, plus the noise that is left."""
        clean_TC = predictions["cond"].clamp(-1, 1)
        return clean_TC + (next_noise_level / noise_level) * (latents_TC - clean_TC)

    def decoder(self, condition: Walk) -> Decoder:
        """`frames_of`: a frame needs nothing of the others."""
        return StatelessDecoder(frames_of)
