"""The built-in demo model as a `VideoModel`: 32 x 32 frames of one or two coloured shapes, 8 frames at a time.

Latents are the pixels themselves: 8 x 8 patches scaled to -1..1. The network predicts clean latents; a denoise step
is an Euler step of flow matching, x_t = (1 - t) * clean + t * noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from typing_extensions import override

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import Attend, Decoder, FrameFormat, ModelGeometry, PrefixFormat
from pagedvid.engine.schedule import Range, Schedule
from pagedvid.errors import ConfigError
from pagedvid.models.common.chunk_by_chunk import ChunkByChunk, check_whole_chunks, chunk_by_chunk, chunk_noise
from pagedvid.models.common.prefix import INPUT, Prefix, read_prefix
from pagedvid.models.common.stateless_decoder import StatelessDecoder
from pagedvid.models.demo.captions import read_prompt
from pagedvid.models.demo.network import Expectation, Transformer, demo_rotary
from pagedvid.models.demo.spec import (
    GRID_SIZE,
    NUM_DENOISE_STEPS,
    geometry_of,
    images_of,
    noise_levels,
    patches_of,
)
from pagedvid.models.demo.world import FRAME_SIZE
from pagedvid.rotary.grid_rotary import GridRotary


@dataclass(frozen=True)
class DemoCondition(Expectation):
    """What steers one video."""

    prefix: Prefix | None = None
    """The frames that it goes on from."""


@dataclass(frozen=True)
class DemoModel(ChunkByChunk):
    """The demo model; `weights.load_demo` is the usual way to get one."""

    network: Transformer
    rope: GridRotary
    geometry: ModelGeometry
    name: str = "demo"
    frames_per_second: float = 12.0
    positions: str = "window"
    max_window_chunks: int = 6

    @staticmethod
    def of(network: Transformer) -> DemoModel:
        """Wrap a network, trained or not."""
        config = network.config
        rope = demo_rotary(config.head_dim, GRID_SIZE, GRID_SIZE)
        return DemoModel(network.eval().requires_grad_(False), rope, geometry_of(config))

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The network's blocks, in the order in which they run."""
        return list(self.network.blocks)

    def encode_prompt(self, prompt: str) -> Expectation:
        """What the prompt lets the network expect of every chunk."""
        slots = torch.from_numpy(read_prompt(prompt)).to(self.network.places.device)
        return self.network.canvas(slots[None]).of_prompt(0)

    @override
    def prepare(self, prompt: str, inputs: Mapping[str, Any], num_frames: int) -> DemoCondition:
        """The prompt, and the frames to go on from (models/common/prefix.py), if any. Raises PromptError,
        ConfigError."""
        if others := sorted(set(inputs) - {INPUT}):
            raise ConfigError(f"{self.name} takes a prompt and frames to go on from; remove {', '.join(others)}")
        expected = self.encode_prompt(prompt)
        prefix = read_prefix(inputs, self._prefix_format(max_chunks=1), self.encode, self.name)
        return DemoCondition(expected.hidden_SW, expected.picture_SC, expected.pooled_W, prefix)

    @override
    def prefix_format(self, window: Window) -> PrefixFormat:
        """Its own frames, as many chunks as the window keeps."""
        return self._prefix_format(window.max_chunks)

    def _prefix_format(self, max_chunks: int) -> PrefixFormat:
        frames = FrameFormat(FRAME_SIZE, FRAME_SIZE, self.frames_per_second)
        return PrefixFormat(frames, self.geometry.frames_per_chunk, max_chunks)

    @override
    def schedule(
        self, condition: DemoCondition, num_frames: int, num_denoise_steps: int | None, window: Window
    ) -> Schedule:
        """Chunk by chunk, after the given ones."""
        levels = self.noise_levels(num_denoise_steps or self.default_denoise_steps)
        num_given = 0 if condition.prefix is None else condition.prefix.num_chunks
        return chunk_by_chunk(self.geometry, num_frames, levels, window, num_given)

    @override
    def initial_latents(self, condition: DemoCondition, seed: int, chunk_index: int) -> Tensor:
        """A given chunk, or noise."""
        if condition.prefix is not None and chunk_index < condition.prefix.num_chunks:
            return condition.prefix.chunk(chunk_index)
        return self.initial_noise(seed, chunk_index)

    @override
    def noise_levels(self, num_denoise_steps: int = NUM_DENOISE_STEPS) -> tuple[float, ...]:
        return noise_levels(num_denoise_steps)

    def initial_noise(self, seed: int, chunk_index: int) -> Tensor:
        """Noise of one chunk, [128, 192], on the network's device; drawn on the CPU, so it is the same everywhere."""
        noise = chunk_noise(self.geometry.chunk_tokens, self.network.config.latent_channels, seed, chunk_index)
        return noise.to(self.network.places)

    def forward(
        self, latents_TC: Tensor, ranges: Sequence[Range], conditions: Sequence[Expectation], attend: Attend
    ) -> Tensor:
        """Clean latents [T, C] of the packed ranges, each of them one chunk of 128 tokens. Raises ShapeError."""
        check_whole_chunks(self.name, self.geometry, latents_TC, ranges)
        levels_N = torch.tensor([part.noise_level for part in ranges], dtype=torch.float32, device=latents_TC.device)
        return self.network(latents_TC, levels_N, Expectation.stack(conditions), attend)

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """Latents at the next level: the predicted clean latents plus the noise that is left."""
        clean_TC = predictions["cond"]
        return clean_TC + (next_noise_level / noise_level) * (latents_TC - clean_TC)

    def decoder(self, condition: Expectation) -> Decoder:
        """`decode`: a frame needs nothing of the others."""
        return StatelessDecoder(self.decode)

    def encode(self, frames_NHWC: Tensor) -> Tensor:
        """Latents of frames uint8 [N, 32, 32, 3], float32 [N * 16, 192] on the network's device."""
        return patches_of(frames_NHWC.float() / 127.5 - 1).to(self.network.places)

    def decode(self, latents_TC: Tensor) -> np.ndarray:
        """Frames of clean latents, uint8 [frames, 32, 32, 3]."""
        images = images_of(latents_TC.float().cpu())
        return ((images + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).numpy()
