"""SkyReels-V2 by name: how one is loaded.

`weights`: a pipeline in the layout of diffusers (Skywork/SkyReels-V2-DF-1.3B-540P-Diffusers and its siblings), its
folder `transformer` alone, or a file or folder in the names of Wan's repository (Skywork's own, ComfyUI's, GGUF).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import ModelSpec
from pagedvid.models.common.checkpoint import tensor_shapes
from pagedvid.models.wan.base.family import WanFamily
from pagedvid.models.wan.skyreels.pipeline import SkyReelsV2
from pagedvid.models.wan.skyreels.schedule import skyreels_schedule
from pagedvid.models.wan.skyreels.spec import PUBLISHED, SkyReelsSettings


def model_spec(config: ModelConfig) -> ModelSpec:
    """For the registry. The negative prompt is encoded with the others. Raises ConfigError."""
    shape, published = PUBLISHED[config.name]
    chosen = {name: getattr(config, name) for name in ("guidance_scale", "shift", "addnoise_condition")}
    chosen = {name: value for name, value in chosen.items() if value is not None}
    return FAMILY.spec(config, shape, replace(published, ar_step=config.ar_step, **chosen))


def _negative_prompt(settings: SkyReelsSettings) -> tuple[str, ...]:
    return (settings.negative_prompt,)


def _knows_fps(transformer: Path, prefer_ema: bool) -> Mapping[str, Any]:
    return {"inject_sample_info": "fps_embedding.weight" in tensor_shapes(transformer, prefer_ema)}


FAMILY = WanFamily("SkyReelsV2Transformer3DModel", SkyReelsV2, skyreels_schedule, _negative_prompt, _knows_fps)
