"""SkyReels-V2 by name: how one is loaded.

`weights`: a pipeline in the layout of diffusers (Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers and its siblings), its
folder `transformer` alone, or a file or folder in the names of Wan's repository (Skywork's own, ComfyUI's, GGUF).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pagedvid.cache.window import Window
from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import ModelSpec
from pagedvid.engine.schedule import Schedule
from pagedvid.models.common.checkpoint import tensor_shapes
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
from pagedvid.models.wan.skyreels.pipeline import SkyReelsV2
from pagedvid.models.wan.skyreels.schedule import skyreels_schedule
from pagedvid.models.wan.skyreels.spec import PUBLISHED

TRANSFORMER = "SkyReelsV2Transformer3DModel"


def model_spec(config: ModelConfig) -> ModelSpec:
    """For the registry. The prompts and the negative one are encoded before the transformer is loaded.

    Raises ConfigError.
    """
    shape, published = PUBLISHED[config.name]
    settings = replace(with_frame_size(published, config.height, config.width), ar_step=config.ar_step)
    has_vae = config.vae is not None
    if config.weights is not None:
        parts = find_parts(Path(config.weights), config)
        shape, has_vae = shape_of_config(_sizes(parts.transformer, config.ema)), parts.vae is not None
    geometry = shape.geometry(settings, settings.branches)

    def schedule(num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
        return skyreels_schedule(settings, geometry, num_frames, num_denoise_steps, window)

    def load(prompts: Sequence[str]) -> SkyReelsV2:
        parts = find_parts(needed_weights(config), config)
        sizes = _sizes(parts.transformer, config.ema)
        vae = load_vae(parts.vae, sizes["in_channels"], config.device_of_vae)
        rows = map(cleaned, (*prompts, settings.negative_prompt) if prompts else ())
        width, place = sizes["text_dim"], config.device_of_text_encoder
        text = t5_encoder(parts.text_encoder, "umt5", width, place, rows, settings.text_tokens)
        transformer = load_transformer(TRANSFORMER, sizes, parts.transformer, config)
        if vae is None:
            return SkyReelsV2(transformer, settings, text)
        return SkyReelsV2(transformer, settings, text, vae.stream, vae.encode)

    frames = settings.frames if has_vae else None
    return ModelSpec(geometry, schedule, load, writes_latents=not has_vae, frames=frames)


def _sizes(transformer: Path, prefer_ema: bool) -> dict[str, Any]:
    """The arguments of diffusers' class, for weights in either form."""
    sizes = library_config(transformer, TRANSFORMER)
    if sizes is not None:
        return sizes
    knows_fps = "fps_embedding.weight" in tensor_shapes(transformer, prefer_ema)
    return {**transformer_config(transformer, prefer_ema), "inject_sample_info": knows_fps}
