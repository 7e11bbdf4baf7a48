"""The walk model's weights, read and written: a folder with config.json and model.safetensors.

The shipped ones are in the folder weights/.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pagedvid.cache.window import Window
from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import FrameFormat, ModelSpec
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.models.common.checkpoint import load_checkpoint
from pagedvid.models.common.checkpoint_files import path_or_none
from pagedvid.models.common.trained_folder import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    read_config,
    read_sizes,
    require_folder,
    save_folder,
)
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.walk.actions import MOVES, Walk
from pagedvid.models.walk.network import Transformer
from pagedvid.models.walk.pipeline import WalkModel
from pagedvid.models.walk.schedule import num_chunks_of, walk_schedule
from pagedvid.models.walk.spec import (
    FRAME_SIZE,
    FRAMES_PER_CHUNK,
    FRAMES_PER_SECOND,
    WORLD_VERSION,
    geometry_of,
    levels_of,
)
from pagedvid.shown import named, shown

NAME = "walk"
SHIPPED_WEIGHTS = Path(__file__).parent / "weights"
PIXEL_SCALE = 4
"""Enlargement of its frames in files."""
WINDOW = Window(sink_chunks=0, recent_chunks=100)
"""It remembers what it saw up to 200 frames ago. The first chunk is like any other."""


def model_spec(config: ModelConfig) -> ModelSpec:
    """For the registry. Raises ConfigError."""
    folder = _folder_of(path_or_none(config.weights))
    geometry = geometry_of(_read_sizes(folder))

    def schedule(num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
        places_F2 = Walk(None, ()).places(num_chunks_of(num_frames) * FRAMES_PER_CHUNK)
        return walk_schedule(places_F2, levels=levels_of(num_denoise_steps), window=window)

    def load(prompts: Sequence[str]) -> WalkModel:
        if config.text_encoder or config.vae:
            raise ConfigError(
                "the walk model needs neither a text encoder nor a VAE; remove model.text_encoder, model.vae"
            )
        return load_walk(folder, config.device, getattr(torch, config.dtype))

    frames = FrameFormat(FRAME_SIZE, FRAME_SIZE, FRAMES_PER_SECOND)
    return ModelSpec(
        geometry,
        schedule,
        load,
        writes_latents=False,
        pixel_scale=PIXEL_SCALE,
        frames=frames,
        takes_frames=True,
        actions=tuple(MOVES),
        example_prompt="map 7: left 12, up 8, right 12, down 8",
        window=WINDOW,
    )


def load_walk(path: Path | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32) -> WalkModel:
    """Reads `config.json` and `model.safetensors` from a folder (default: the shipped weights).

    Raises ConfigError when a file is missing or unreadable or when the two do not fit each other.
    """
    folder = _folder_of(path)
    network = Transformer(_read_sizes(folder))
    load_checkpoint(network, folder / WEIGHTS_FILE)
    return WalkModel.of(network.to(device=device, dtype=dtype))


def save_weights(network: Transformer, folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes what `load_walk` reads."""
    save_folder(network, network.config, folder, facts, world=WORLD_VERSION)


def _folder_of(path: Path | None) -> Path:
    return require_folder(SHIPPED_WEIGHTS if path is None else path, NAME)


def _read_sizes(folder: Path) -> TransformerConfig:
    path = folder / CONFIG_FILE
    config = read_config(path, NAME)
    if config.get("world") != WORLD_VERSION:
        raise ConfigError(
            f"{named(path)}: trained on world {shown(config.get('world'))}, this is {WORLD_VERSION}; train again"
        )
    return read_sizes(config, TransformerConfig, path)
