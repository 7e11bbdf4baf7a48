"""HY-WorldPlay as a `VideoModel`: what both variants share. The variants are in pipeline_8b.py and pipeline_wan5b.py.

Frames are latent frames, and outputs are latents: the VAE needs a whole video (pagedvid/integrations/vae.py).
Self-attention reads the same stored keys and values in two views, rotary and projective; nothing is stored twice.

Axes: T packed tokens, F packed frames of n tokens each, C channels of a token, H heads, D head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import Attend, Decoder, ModelGeometry, PrefixFormat
from pagedvid.engine.schedule import Range, Schedule
from pagedvid.models.common.chunk_by_chunk import chunk_noise
from pagedvid.models.common.latent_grid import LatentGrid
from pagedvid.models.common.stateless_decoder import StatelessDecoder
from pagedvid.models.worldplay.camera import CameraProjection
from pagedvid.models.worldplay.conditions import Condition, image_grid, read_inputs, states
from pagedvid.models.worldplay.layers import AttendTwice
from pagedvid.models.worldplay.memory import BLOCK_FRAMES, MemoryPolicy, default_points
from pagedvid.models.worldplay.schedule import MAX_TIMESTEP, remembering
from pagedvid.rotary.grid_rotary import GridRotary

ContextOf = Callable[[int], Sequence[tuple[Tensor, Tensor] | None]]
"""Layer -> context keys and values of every range."""


class WorldPlayModel(ABC):
    """Both variants of HY-WorldPlay; subclasses give the network and what it is fed."""

    name: str
    policy: MemoryPolicy
    network: Any
    image_name: str
    """Under which the first image's latents are in the embeddings."""
    frames_per_second = 6.0
    """Latent frames; the VAE makes four of each."""
    positions = "absolute"
    """Has no effect, like the configured window: the schedule brings its own window."""
    max_window_chunks = 2**31

    def __init__(
        self, geometry: ModelGeometry, grid: LatentGrid, rope: GridRotary, points: Tensor | None = None
    ) -> None:
        """`points` [N, 3]: what views are compared on; None: `memory.default_points`."""
        self.geometry = geometry
        self.grid = grid
        self.rope = rope
        self.projection = CameraProjection(grid.tokens_per_frame, rope.layout)
        self._points = points

    # ------------------------------------------------------------------ what a variant gives

    @abstractmethod
    def timesteps(self, num_denoise_steps: int | None) -> tuple[float, ...]:
        """Falling timesteps from 1000 to 0, one more than steps; None: 4 steps. Raises ConfigError."""

    @abstractmethod
    def encode_text(self, embeddings: Mapping[str, Tensor]) -> Any:
        """What the network takes of the text, computed once per video from tensors of the CPU. Raises ConfigError."""

    @abstractmethod
    def velocity(
        self,
        latents_FnC: Tensor,
        timesteps_F: Tensor,
        actions_F: Tensor,
        frames: Sequence[Sequence[int]],
        conditions: Sequence[Condition],
        attend_with: Callable[[ContextOf | None], AttendTwice],
    ) -> Tensor:
        """Flow velocity [F, n, C] of ranges with these frames and conditions.

        `attend_with(context)` is the self-attention of this forward.
        """

    @property
    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The network's blocks, in the order in which they run."""

    @property
    @abstractmethod
    def placement(self) -> Tensor:
        """A tensor on the device and in the dtype in which latents are handed to the network."""

    def with_prompt(self, prompt: str, embeddings: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """A request's embeddings, with what a variant itself makes of the prompt."""
        return embeddings

    # ------------------------------------------------------------------ VideoModel

    def prepare(self, prompt: str, inputs: Mapping[str, Any], num_frames: int) -> Condition:
        """Trajectory and encoders' outputs (conditions.py), the prompt's among the latter. Raises ConfigError."""
        whole = BLOCK_FRAMES * -(-num_frames // BLOCK_FRAMES)
        trajectory, given = read_inputs(inputs, whole)
        embeddings = self.with_prompt(prompt, given)
        image = image_grid(embeddings, self.image_name, self.grid.channels, self.grid.rows, self.grid.columns)
        tokens = self.grid.tokens(image)[0].to(self.placement.device, torch.float32)
        return Condition(trajectory.cameras, trajectory.actions_F, self.encode_text(embeddings), tokens)

    def prefix_format(self, window: Window) -> PrefixFormat | None:
        """None: its first frame comes as the output of encoders (conditions.py)."""
        return None

    def schedule(
        self, condition: Condition, num_frames: int, num_denoise_steps: int | None, window: Window
    ) -> Schedule:
        """A memory pass and denoise steps per chunk; `window` has no effect. Raises ConfigError."""
        points = default_points() if self._points is None else self._points
        return remembering(self.policy, num_frames, self.timesteps(num_denoise_steps), condition.cameras, points)

    def initial_latents(self, condition: Condition, seed: int, chunk_index: int) -> Tensor:
        """Noise, float32 [chunk_tokens, C]."""
        return self.noise(seed, chunk_index)

    def noise(self, seed: int, chunk_index: int) -> Tensor:
        """Standard normal numbers that depend on seed and chunk only, float32 [chunk_tokens, C]."""
        noise = chunk_noise(self.geometry.chunk_tokens, self.grid.token_channels, seed, chunk_index)
        return noise.to(self.placement.device)

    def forward(
        self, latents_TC: Tensor, ranges: Sequence[Range], conditions: Sequence[Condition], attend: Attend
    ) -> Tensor:
        """Flow velocity of every packed token, float32 [T, C]."""
        frames = [part.frames for part in ranges]
        timesteps = [self.timestep(part.noise_level, frame) for part in ranges for frame in part.frames]
        actions = torch.cat([condition.actions_F[list(own)] for own, condition in zip(frames, conditions, strict=True)])

        def attend_with(context_of: ContextOf | None) -> AttendTwice:
            def attend_twice(layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> tuple[Tensor, Tensor]:
                context = () if context_of is None else context_of(layer)
                views = (self.projection,)
                both = attend(layer, q_THD, k_THD, v_THD, projections=views, context=context)
                rotary, projective = both.unbind()
                return rotary, projective

            return attend_twice

        device, latents = latents_TC.device, latents_TC.unflatten(0, (-1, self.grid.tokens_per_frame))
        velocity = self.velocity(
            latents,
            torch.tensor(timesteps, dtype=torch.float32, device=device),
            actions.to(device),
            frames,
            conditions,
            attend_with,
        )
        return velocity.flatten(0, 1).float()

    def timestep(self, noise_level: float, frame: int) -> float:
        """What the network is told of one frame of a range at this noise level."""
        return noise_level

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """One Euler step along the velocity."""
        (velocity,) = predictions.values()
        return latents_TC + (next_noise_level - noise_level) / MAX_TIMESTEP * velocity

    def decoder(self, condition: Condition) -> Decoder:
        """`decode`: the output is the latents themselves."""
        return StatelessDecoder(self.decode)

    def decode(self, latents_TC: Tensor) -> np.ndarray:
        """Latents of clean frames, float32 [frames, channels, rows, columns]."""
        tokens = latents_TC.float().unflatten(0, (-1, self.grid.tokens_per_frame))
        return self.grid.grid(tokens).transpose(0, 1).contiguous().cpu().numpy()

    def states(self, embeddings: Mapping[str, Tensor], name: str, channels: int, mask: str | None = None) -> Tensor:
        """`conditions.states`, checked on the CPU, then moved to the network's device and dtype."""
        return states(embeddings, name, channels, mask).to(self.placement)
