"""The demo model for the registry; see `ModelFamily` in models/choice.py."""

from __future__ import annotations

import torch

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.models.choice import ModelChoice
from pagedvid.models.common.chunk_by_chunk import chunk_by_chunk
from pagedvid.models.demo.model import DemoModel, read_geometry


def geometry(name: str, choice: ModelChoice) -> ModelGeometry:
    """See `ModelFamily`."""
    return read_geometry(choice.weights)


def schedule(
    name: str, choice: ModelChoice, num_frames: int, num_denoise_steps: int | None, window: Window
) -> Schedule:
    """See `ModelFamily`."""
    levels = (1.0,) * (num_denoise_steps or 1) + (0.0,)  # what the levels are does not change the order of work
    return chunk_by_chunk(geometry(name, choice), num_frames, levels, window)


def load(name: str, choice: ModelChoice, device: str, dtype: torch.dtype) -> DemoModel:
    """See `ModelFamily`."""
    if choice.text_encoder or choice.vae:
        raise ConfigError("the demo model needs neither a text encoder nor a VAE; remove model.text_encoder, model.vae")
    return DemoModel.load(choice.weights, device, dtype)


def writes_latents(choice: ModelChoice) -> bool:
    """Never: its latents are pixels."""
    return False
