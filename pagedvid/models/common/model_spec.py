"""What is known of a model before its weights are read; every family gives one per configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pagedvid.cache.window import Window
from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import ModelGeometry, VideoModel
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError


@dataclass(frozen=True)
class ModelSpec:
    """What memory, order of work and outputs depend on, and how to load the model."""

    geometry: ModelGeometry
    schedule: Callable[[int, int | None, Window], Schedule]
    """(latent frames of a video, denoise steps of a chunk or None for the model's own number, configured window) ->
    how that video would be worked on. Raises ConfigError."""
    load: Callable[[Sequence[str]], VideoModel]
    """The model ready to run. The given prompts, known beforehand, are encoded first, so that the text encoder is gone
    when the network is loaded. Raises ConfigError."""
    writes_latents: bool
    """Whether latents come out rather than frames."""
    pixel_scale: int = 1
    """Enlargement of its frames in files unless settings say otherwise."""


def needed_weights(config: ModelConfig) -> Path:
    """The weights of a model that ships without. Raises ConfigError."""
    if config.weights is None:
        raise ConfigError(f"{config.name} ships without weights: give --weights PATH, the published file or folder")
    return Path(config.weights)


def path_or_none(written: str | None) -> Path | None:
    """A setting that names a file or folder, as a path."""
    return None if written is None else Path(written)
