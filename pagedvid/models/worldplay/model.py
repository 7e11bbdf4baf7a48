"""HY-WorldPlay as a `VideoModel`: what both variants share. The variants are in model_8b.py and model_wan5b.py.

Frames are latent frames, and latents go out: the VAE needs a whole video (pagedvid/integrations/vae.py).
Self-attention is seen in two views of the same stored keys and values, rotary and projective; nothing is kept twice.

Axes: T packed tokens, F packed frames of n tokens each, C channels of a token, H heads, D head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import Attend, Decoder, ModelGeometry, Piece
from pagedvid.engine.schedule import Schedule, check_plannable
from pagedvid.models.common.latent_grid import LatentGrid
from pagedvid.models.worldplay.camera import CameraProjection, Cameras
from pagedvid.models.worldplay.conditions import Condition, image_grid, read_inputs, states
from pagedvid.models.worldplay.layers import AttendTwice
from pagedvid.models.worldplay.memory import BLOCK_FRAMES, MemoryPolicy, default_points, num_selected, select_frames
from pagedvid.models.worldplay.network_8b import Config8B
from pagedvid.models.worldplay.network_wan5b import ConfigWan5B
from pagedvid.models.worldplay.schedule import MAX_TIMESTEP, rebuilt_memory
from pagedvid.rotary.grid_rotary import GridRotary

ContextOf = Callable[[int], Sequence[tuple[Tensor, Tensor] | None]]
"""Layer -> context keys and values of every piece."""


class WorldPlayModel(ABC):
    """See the module docstring."""

    name: str
    policy: MemoryPolicy
    image_name: str
    """Under which the first image's latents are in the embeddings."""
    frames_per_second = 6.0
    """Latent frames; the VAE makes four of each."""
    positions = "absolute"
    """Of no effect, like the configured window: the memory is placed by the schedule's own."""
    max_window_chunks = 2**31
    default_denoise_steps = 4

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
    def timesteps(self, num_denoise_steps: int) -> tuple[float, ...]:
        """num_denoise_steps + 1 falling timesteps, from 1000 to 0. Raises ConfigError for what it cannot do."""

    @abstractmethod
    def encode_text(self, embeddings: Mapping[str, Tensor]) -> Any:
        """What the network takes of the text, computed once per video from tensors of the CPU. Raises ConfigError."""

    @abstractmethod
    def velocity(self, latents_FnC: Tensor, timesteps_F: Tensor, actions_F: Tensor, pieces: Sequence[Piece],
                 attend_with: Callable[[ContextOf | None], AttendTwice]) -> Tensor:  # fmt: skip
        """Flow velocity [F, n, C]. `attend_with(context)` is the self-attention of this forward."""

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

    def schedule(self, condition: Condition, num_frames: int, num_denoise_steps: int, window: Window) -> Schedule:
        """A memory pass and denoise steps per chunk; `window` has no effect. Raises ConfigError."""
        points = default_points() if self._points is None else self._points
        return remembering(self.policy, num_frames, self.timesteps(num_denoise_steps), condition.cameras, points)

    def initial_latents(self, condition: Condition, seed: int, chunk_index: int) -> Tensor:
        """Noise, float32 [chunk_tokens, C]."""
        return self.noise(seed, chunk_index)

    def noise(self, seed: int, chunk_index: int) -> Tensor:
        """Standard normal numbers that depend on seed and chunk only, float32 [chunk_tokens, C]."""
        state = int(np.random.SeedSequence([seed, chunk_index]).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(state)
        drawn = torch.randn(
            self.geometry.chunk_tokens, self.grid.token_channels, generator=generator, dtype=torch.float32
        )
        return drawn.to(self.placement.device)

    def forward(self, latents_TC: Tensor, pieces: Sequence[Piece], attend: Attend) -> Tensor:
        """Flow velocity of every packed token, float32 [T, C]."""
        timesteps = [self.timestep(piece, frame) for piece in pieces for frame in piece.frames]
        actions = torch.cat([piece.condition.actions_F[list(piece.frames)] for piece in pieces])

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
            pieces,
            attend_with,
        )
        return velocity.flatten(0, 1).float()

    def timestep(self, piece: Piece, frame: int) -> float:
        """What the network is told of one frame of a piece."""
        return piece.noise_level

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """One Euler step along the velocity."""
        (velocity,) = predictions.values()
        return latents_TC + (next_noise_level - noise_level) / MAX_TIMESTEP * velocity

    def decoder(self, condition: Condition) -> Decoder:
        """`decode`: latents go out as they are."""
        return self.decode

    def decode(self, latents_TC: Tensor) -> np.ndarray:
        """Latents of clean frames, float32 [frames, channels, rows, columns]."""
        tokens = latents_TC.float().unflatten(0, (-1, self.grid.tokens_per_frame))
        return self.grid.grid(tokens).transpose(0, 1).contiguous().cpu().numpy()

    def states(self, embeddings: Mapping[str, Tensor], name: str, channels: int, mask: str | None = None) -> Tensor:
        """See `conditions.states`; checked on the CPU, then brought to where the network is."""
        return states(embeddings, name, channels, mask).to(self.placement)


def remembering(
    policy: MemoryPolicy, num_frames: int, timesteps: Sequence[float], cameras: Cameras, points_N3: Tensor
) -> Schedule:
    """The schedule of at least `num_frames` frames along a trajectory. Raises ConfigError for too many."""

    def memory_of(chunk: int) -> tuple[int, ...]:
        return select_frames(policy, BLOCK_FRAMES * chunk, cameras.views_F44, points_N3)

    return rebuilt_memory(memory_sizes(policy, num_frames), memory_of, timesteps, cameras)


def schedule_without_trajectory(policy: MemoryPolicy, num_frames: int, timesteps: Sequence[float]) -> Schedule:
    """One of a camera that stands still: how many frames are remembered does not depend on where the camera goes.

    Raises ConfigError for too many frames.
    """
    sizes = memory_sizes(policy, num_frames)
    standing = Cameras.standing(BLOCK_FRAMES * len(sizes))
    return remembering(policy, num_frames, timesteps, standing, default_points()[:1])


def memory_sizes(policy: MemoryPolicy, num_frames: int) -> list[int]:
    """Frames that each chunk of a video remembers. Raises ConfigError for more chunks than can be planned."""
    num_chunks = -(-num_frames // BLOCK_FRAMES)
    check_plannable(num_frames, num_chunks)
    return [num_selected(policy, BLOCK_FRAMES * chunk) for chunk in range(num_chunks)]


def geometry_of(config: Config8B | ConfigWan5B, grid: LatentGrid) -> ModelGeometry:
    """The integers of a network at a resolution."""
    return ModelGeometry(
        num_layers=config.num_layers,
        num_query_heads=config.num_heads,
        num_kv_heads=config.num_heads,
        head_dim=config.head_dim,
        tokens_per_frame=grid.tokens_per_frame,
        frames_per_chunk=BLOCK_FRAMES,
    )
