"""MAGI-1 for the registry; see `ModelFamily` in models/choice.py."""

from __future__ import annotations

import torch

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.models.choice import ModelChoice
from pagedvid.models.common.text_encoder import t5_encoder
from pagedvid.models.magi1.config import config_of
from pagedvid.models.magi1.model import MagiModel, geometry_of
from pagedvid.models.magi1.schedule import magi_schedule


def geometry(name: str, choice: ModelChoice) -> ModelGeometry:
    """See `ModelFamily`."""
    return geometry_of(config_of(name, choice.weights))


def schedule(
    name: str, choice: ModelChoice, num_frames: int, num_denoise_steps: int | None, window: Window
) -> Schedule:
    """See `ModelFamily`."""
    config = config_of(name, choice.weights)
    return magi_schedule(config.sampling, config.frames.chunk_width, num_denoise_steps, num_frames)


def load(name: str, choice: ModelChoice, device: str, dtype: torch.dtype) -> MagiModel:
    """See `ModelFamily`."""
    weights = choice.needed_weights(name)
    if choice.vae is not None:
        raise ConfigError(
            f"{name} has a VAE of its own that no library here has: leave model.vae out, latents come out"
        )
    config = config_of(name, weights)
    width, max_tokens = config.network.caption_channels, config.network.caption_max_length
    encoder = t5_encoder(choice.text_encoder, "t5", width, device, choice.prompts, max_tokens)
    return MagiModel.load(config, weights, device, dtype, encoder, choice.ema)


def writes_latents(choice: ModelChoice) -> bool:
    """Always: its VAE is not here."""
    return True
