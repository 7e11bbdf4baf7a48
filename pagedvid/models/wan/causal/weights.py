"""Causal Wan models by name: how one is loaded.

`weights`: a file or folder in the names of Wan's repository (checkpoint.py), a transformer's folder in the layout of
diffusers, or a whole pipeline in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pagedvid.cache.window import Window
from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import ModelSpec
from pagedvid.engine.schedule import Schedule
from pagedvid.models.common.checkpoint_files import needed_weights
from pagedvid.models.common.text_encoder import t5_encoder
from pagedvid.models.wan.base.checkpoint import transformer_config
from pagedvid.models.wan.base.spec import with_frame_size
from pagedvid.models.wan.base.text import cleaned
from pagedvid.models.wan.base.weights import (
    find_parts,
    library_config,
    load_transformer,
    load_vae,
    shape_of_config,
)
from pagedvid.models.wan.causal.pipeline import WanCausal
from pagedvid.models.wan.causal.spec import PUBLISHED, wan_causal_schedule

TRANSFORMER = "WanTransformer3DModel"


def model_spec(config: ModelConfig) -> ModelSpec:
    """For the registry. The prompts are encoded before the transformer is loaded. Raises ConfigError."""
    shape, published = PUBLISHED[config.name]
    settings = with_frame_size(published, config.height, config.width)
    has_vae = config.vae is not None
    if config.weights is not None:
        parts = find_parts(Path(config.weights), config)
        shape, has_vae = shape_of_config(_sizes(parts.transformer, config.ema)), parts.vae is not None
    geometry = shape.geometry(settings)

    def schedule(num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
        return wan_causal_schedule(settings, geometry, num_frames, num_denoise_steps, window)

    def load(prompts: Sequence[str]) -> WanCausal:
        parts = find_parts(needed_weights(config), config)
        sizes = _sizes(parts.transformer, config.ema)
        vae = load_vae(parts.vae, sizes["in_channels"], config.device_of_vae)
        rows = map(cleaned, prompts)
        width, place = sizes["text_dim"], config.device_of_text_encoder
        text = t5_encoder(parts.text_encoder, "umt5", width, place, rows, settings.text_tokens)
        transformer = load_transformer(TRANSFORMER, sizes, parts.transformer, config)
        if vae is None:
            return WanCausal(transformer, settings, text)
        return WanCausal(transformer, settings, text, vae.stream, vae.encode)

    frames = settings.frames if has_vae else None
    return ModelSpec(geometry, schedule, load, writes_latents=not has_vae, frames=frames)


def _sizes(transformer: Path, prefer_ema: bool) -> dict[str, Any]:
    """The arguments of diffusers' class, for weights in either form."""
    sizes = library_config(transformer, TRANSFORMER)
    return transformer_config(transformer, prefer_ema) if sizes is None else sizes
