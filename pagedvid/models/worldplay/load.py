"""HY-WorldPlay for the registry; see `ModelFamily` in models/choice.py."""

from __future__ import annotations

from pathlib import Path

import torch

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.models.choice import ModelChoice
from pagedvid.models.common.text_encoder import t5_encoder
from pagedvid.models.wan.base.text import cleaned
from pagedvid.models.worldplay import model_8b, model_wan5b
from pagedvid.models.worldplay.config import read_config_wan5b
from pagedvid.models.worldplay.model import WorldPlayModel

_VARIANTS = {"hy-worldplay-8b": model_8b, "hy-worldplay-5b": model_wan5b}


def geometry(name: str, choice: ModelChoice) -> ModelGeometry:
    """See `ModelFamily`."""
    return _VARIANTS[name].read_geometry(choice.weights, choice.ema)


def schedule(
    name: str, choice: ModelChoice, num_frames: int, num_denoise_steps: int | None, window: Window
) -> Schedule:
    """See `ModelFamily`; `window` has no effect."""
    return _VARIANTS[name].read_schedule(num_frames, num_denoise_steps)


def load(name: str, choice: ModelChoice, device: str, dtype: torch.dtype) -> WorldPlayModel:
    """See `ModelFamily`."""
    weights = choice.needed_weights(name)
    if choice.vae is not None:
        raise ConfigError(
            f"{name} has a VAE that decodes whole videos: leave model.vae out, and decode the latents that come out "
            "by `pagedvid decode`"
        )
    if name == "hy-worldplay-5b":
        return _load_wan5b(weights, choice, device, dtype)
    if choice.text_encoder is not None:
        raise ConfigError(
            f"{name} reads three encoders (Qwen2.5-VL, ByT5, SigLIP) that are not run here: leave model.text_encoder "
            'out and give requests their outputs in a file (the input "embeddings")'
        )
    return model_8b.WorldPlay8B.load(weights, device, dtype, choice.ema)


def _load_wan5b(weights: Path, choice: ModelChoice, device: str, dtype: torch.dtype) -> WorldPlayModel:
    width, prompts = read_config_wan5b(weights, choice.ema).text_channels, map(cleaned, choice.prompts)
    encoder = t5_encoder(choice.text_encoder, "umt5", width, device, prompts, model_wan5b.TEXT_TOKENS)
    return model_wan5b.WorldPlayWan5B.load(weights, device, dtype, encoder, choice.ema)


def writes_latents(choice: ModelChoice) -> bool:
    """Always: its VAE decodes whole videos (`pagedvid decode`)."""
    return True
