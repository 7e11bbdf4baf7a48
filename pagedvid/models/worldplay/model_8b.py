"""The 8B model: text keys as context of every attention, the first image as condition channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pagedvid.engine.protocol import ModelGeometry, Piece
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.models.common.checkpoint import load_checkpoint
from pagedvid.models.common.latent_grid import LatentGrid
from pagedvid.models.worldplay.config import read_config_8b, read_grid
from pagedvid.models.worldplay.layers import AttendTwice, slot_rotary
from pagedvid.models.worldplay.memory import MEMORY_8B
from pagedvid.models.worldplay.model import ContextOf, WorldPlayModel, geometry_of, schedule_without_trajectory
from pagedvid.models.worldplay.network_8b import Config8B, Network8B, TextKeys
from pagedvid.models.worldplay.schedule import timesteps_8b
from pagedvid.models.worldplay.text_8b import TextInputs

LATENT_SIZE = (30, 52)
"""Rows and columns of a latent frame: 480 x 832 pixels."""


class WorldPlay8B(WorldPlayModel):
    """See the module docstring; `load` is the usual way to get one."""

    name = "hy-worldplay-8b"
    policy = MEMORY_8B
    image_name = "image_cond"

    def __init__(self, network: Network8B, grid: LatentGrid, points: Tensor | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        config = network.config
        rope = slot_rotary(config.rope_channels, grid.token_rows, grid.token_columns, config.rope_theta)
        super().__init__(geometry_of(config, grid), grid, rope, points)

    @staticmethod
    def load(
        path: Path | None, device: str = "cpu", dtype: torch.dtype = torch.bfloat16, prefer_ema: bool = True
    ) -> WorldPlay8B:
        """The published checkpoint: a file, an index of shards, or a folder. Raises ConfigError."""
        if path is None:
            raise ConfigError(f"{WorldPlay8B.name} ships without weights: give --weights PATH")
        config = read_config_8b(path, prefer_ema)
        grid = read_grid(path, config, LATENT_SIZE)
        with torch.device("meta"):
            network = Network8B(config).to(dtype)
        load_checkpoint(network, path, device, prefer_ema=prefer_ema)
        return WorldPlay8B(network, grid)

    @property
    def placement(self) -> Tensor:
        """See `WorldPlayModel.placement`."""
        return self.network.cond_type_embedding.weight

    def timesteps(self, num_denoise_steps: int) -> tuple[float, ...]:
        """See `timesteps_8b`."""
        return timesteps_8b(num_denoise_steps)

    def encode_text(self, embeddings: Mapping[str, Tensor]) -> TextKeys:
        """Keys and values of the text stream."""
        config = self.network.config
        return self.network.encode_text(
            TextInputs(
                self.states(embeddings, "prompt_embeds", config.text_channels, "prompt_mask"),
                self.states(embeddings, "byt5_states", config.glyph_channels, "byt5_mask"),
                self.states(embeddings, "vision_states", config.vision_channels),
            )
        )

    def velocity(self, latents_FnC: Tensor, timesteps_F: Tensor, actions_F: Tensor, pieces: Sequence[Piece],
                 attend_with: Callable[[ContextOf | None], AttendTwice]) -> Tensor:  # fmt: skip
        """See `WorldPlayModel.velocity`."""

        def text_of(layer: int) -> list[tuple[Tensor, Tensor] | None]:
            texts = [piece.condition.text for piece in pieces]
            return [(text.keys[layer], text.values[layer]) for text in texts]

        tokens = torch.cat([latents_FnC, self._condition_channels(latents_FnC, pieces)], dim=-1)
        return self.network(tokens.to(self.placement.dtype), timesteps_F, actions_F, attend_with(text_of))

    def _condition_channels(self, latents_FnC: Tensor, pieces: Sequence[Piece]) -> Tensor:
        """The first image and a mask of ones at frame 0, zeros elsewhere: [F, n, C + patch]."""
        num_mask = self.grid.token_channels // self.grid.channels
        channels = latents_FnC.new_zeros(*latents_FnC.shape[:2], self.grid.token_channels + num_mask)
        places = [(piece, frame) for piece in pieces for frame in piece.frames]
        for row, (piece, frame) in enumerate(places):
            if frame == 0:
                channels[row, :, : self.grid.token_channels] = piece.condition.image_nC
                channels[row, :, self.grid.token_channels :] = 1.0
        return channels


def read_geometry(path: Path | None = None, prefer_ema: bool = True) -> ModelGeometry:
    """The model's integers from a checkpoint's shapes alone, or those of the published model. Raises ConfigError."""
    if path is None:
        config = Config8B()
        return geometry_of(config, LatentGrid(config.latent_channels, *LATENT_SIZE, config.patch[1]))
    config = read_config_8b(path, prefer_ema)
    return geometry_of(config, read_grid(path, config, LATENT_SIZE))


def read_schedule(num_frames: int, num_denoise_steps: int | None) -> Schedule:
    """How a video of so many frames is worked on; None: four steps. Raises ConfigError."""
    steps = num_denoise_steps or WorldPlay8B.default_denoise_steps
    return schedule_without_trajectory(MEMORY_8B, num_frames, timesteps_8b(steps))
