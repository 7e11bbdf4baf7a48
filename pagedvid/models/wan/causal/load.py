"""Causal Wan models by name: what is published of each, and how one is loaded.

`weights`: a file or folder in the names of Wan's repository (checkpoint.py), a transformer's folder in the layout of
diffusers, or a whole pipeline in it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Schedule
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
from pagedvid.models.wan.causal.checkpoint import library_name, transformer_config
from pagedvid.models.wan.causal.model import WanCausal, wan_causal_schedule
from pagedvid.models.wan.causal.settings import WanCausalSettings

TRANSFORMER = "WanTransformer3DModel"
WAN_1_3B = TransformerShape(num_layers=30, num_heads=12, head_dim=128)
WAN_14B = TransformerShape(num_layers=40, num_heads=40, head_dim=128)

PUBLISHED: dict[str, tuple[TransformerShape, WanCausalSettings]] = {
    "self-forcing": (WAN_1_3B, WanCausalSettings()),
    # CausVid: configs/wan_causal_dmd.yaml, whose steps are taken as they are (warp_denoising_step false).
    "causvid": (
        WAN_1_3B,
        WanCausalSettings(name="causvid", denoise_timesteps=(1000.0, 757.0, 522.0), shift=1.0),
    ),
    # Krea: configs/self_forcing_server_14b.yaml; release_server.py keeps 3 frames beside the current 3 and places them
    # from 0. It computes their keys anew for every chunk; here they stay as they were stored.
    "krea-14b": (
        WAN_14B,
        WanCausalSettings(
            name="krea-14b",
            denoise_timesteps=(1000.0, 937.0, 833.0, 625.0),
            shift=1.0,
            window_frames=6,
            positions="window",
        ),
    ),
}
"""Sizes and settings by model."""


def geometry(name: str, choice: ModelChoice) -> ModelGeometry:
    """See `ModelFamily`."""
    shape = PUBLISHED[name][0]
    if choice.weights is not None:
        shape = shape_of_config(_config(find_parts(choice.weights, choice).transformer, choice.ema))
    return shape.geometry(_settings(name, choice))


def schedule(
    name: str, choice: ModelChoice, num_frames: int, num_denoise_steps: int | None, window: Window
) -> Schedule:
    """See `ModelFamily`."""
    return wan_causal_schedule(_settings(name, choice), geometry(name, choice), num_frames, num_denoise_steps, window)


def load(name: str, choice: ModelChoice, device: str, dtype: torch.dtype) -> WanCausal:
    """See `ModelFamily`. The prompts are encoded before the transformer is loaded."""
    parts, settings = find_parts(choice.needed_weights(name), choice), _settings(name, choice)
    geometry(name, choice)  # a frame that does not fit is refused before anything large is read
    config = _config(parts.transformer, choice.ema)
    decoder = load_decoder(parts.vae, config["in_channels"], device)
    prompts = map(cleaned, choice.prompts)
    text = t5_encoder(parts.text_encoder, "umt5", config["text_dim"], device, prompts, settings.text_tokens)
    transformer = load_transformer(TRANSFORMER, config, parts.transformer, device, dtype, library_name, choice.ema)
    return WanCausal(transformer, settings, text, decoder)


def writes_latents(choice: ModelChoice) -> bool:
    """Whether neither the pipeline nor the choice has a VAE."""
    return not has_vae(choice)


def _settings(name: str, choice: ModelChoice) -> WanCausalSettings:
    return with_frame_size(PUBLISHED[name][1], choice.height, choice.width)


def _config(transformer: Path, prefer_ema: bool) -> dict[str, Any]:
    """The arguments of diffusers' class, for weights in either form."""
    config = library_config(transformer, TRANSFORMER)
    return transformer_config(transformer, prefer_ema) if config is None else config
