"""SkyReels-V2 by name: what is published of each size, and how one is loaded.

`weights`: a pipeline in the layout of diffusers (Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers and its siblings), or its
folder `transformer` alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.models.choice import ModelChoice
from pagedvid.models.common.text_encoder import t5_encoder
from pagedvid.models.wan.base.parts import (
    find_parts,
    has_vae,
    library_config,
    load_decoder,
    load_transformer,
    shape_of_config,
    with_frame_size,
)
from pagedvid.models.wan.base.settings import TransformerShape
from pagedvid.models.wan.base.text import cleaned
from pagedvid.models.wan.skyreels.model import SkyReelsV2, skyreels_schedule
from pagedvid.models.wan.skyreels.settings import SkyReelsSettings

TRANSFORMER = "SkyReelsV2Transformer3DModel"

PUBLISHED: dict[str, tuple[TransformerShape, SkyReelsSettings]] = {
    "skyreels-v2-1.3b": (TransformerShape(num_layers=30, num_heads=12, head_dim=128), SkyReelsSettings()),
    "skyreels-v2-14b": (
        TransformerShape(num_layers=40, num_heads=40, head_dim=128),
        SkyReelsSettings(name="skyreels-v2-14b"),
    ),
}
"""Sizes and settings by model; frames of 544 x 960 pixels, the 720P weights take 720 x 1280."""


def geometry(name: str, choice: ModelChoice) -> ModelGeometry:
    """See `ModelFamily`."""
    settings = _settings(name, choice)
    shape = PUBLISHED[name][0]
    if choice.weights is not None:
        shape = shape_of_config(_config(find_parts(choice.weights, choice).transformer))
    return shape.geometry(settings, settings.branches)


def schedule(
    name: str, choice: ModelChoice, num_frames: int, num_denoise_steps: int | None, window: Window
) -> Schedule:
    """See `ModelFamily`."""
    return skyreels_schedule(_settings(name, choice), geometry(name, choice), num_frames, num_denoise_steps, window)


def load(name: str, choice: ModelChoice, device: str, dtype: torch.dtype) -> SkyReelsV2:
    """See `ModelFamily`. The prompts and the negative one are encoded before the transformer is loaded."""
    parts, settings = find_parts(choice.needed_weights(name), choice), _settings(name, choice)
    geometry(name, choice)  # a frame that does not fit is refused before anything large is read
    config = _config(parts.transformer)
    decoder = load_decoder(parts.vae, config["in_channels"], device)
    prompts = map(cleaned, (*choice.prompts, settings.negative_prompt) if choice.prompts else ())
    text = t5_encoder(parts.text_encoder, "umt5", config["text_dim"], device, prompts, settings.text_tokens)
    transformer = load_transformer(TRANSFORMER, config, parts.transformer, device, dtype, prefer_ema=choice.ema)
    return SkyReelsV2(transformer, settings, text, decoder)


def writes_latents(choice: ModelChoice) -> bool:
    """Whether neither the pipeline nor the choice has a VAE."""
    return not has_vae(choice)


def _settings(name: str, choice: ModelChoice) -> SkyReelsSettings:
    return with_frame_size(PUBLISHED[name][1], choice.height, choice.width)


def _config(transformer: Path) -> dict[str, Any]:
    config = library_config(transformer, TRANSFORMER)
    if config is None:
        raise ConfigError(
            f"{transformer} has no config.json in the layout of diffusers; give the folder of a pipeline, or its "
            "folder transformer"
        )
    return config
