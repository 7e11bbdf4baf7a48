"""Models by name, as a configuration gives them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import ModelSpec, VideoModel
from pagedvid.models.registry import model_spec


def spec_of(name: str, weights: Path | None = None, **chosen: Any) -> ModelSpec:
    """What is known of a model; paths may be given as paths."""
    paths = {"weights": weights, **{key: value for key, value in chosen.items() if isinstance(value, Path)}}
    written = {key: None if path is None else str(path) for key, path in paths.items()}
    return model_spec(ModelConfig(name=name, **{**chosen, **written}))


def load_model(
    name: str,
    weights: Path | None = None,
    dtype: torch.dtype = torch.float32,
    prompts: Sequence[str] = (),
    **chosen: Any,
) -> VideoModel:
    return spec_of(name, weights, dtype=str(dtype).removeprefix("torch."), **chosen).load(prompts)
