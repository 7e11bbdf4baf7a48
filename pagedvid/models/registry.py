"""The models that pagedvid knows by name. Nothing of a model is imported before it is asked for.

To add a model: a file or folder under models/ with a class that satisfies `VideoModel`, and one entry in `_MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pagedvid.errors import ConfigError
from pagedvid.models.base import ModelGeometry, VideoModel


@dataclass(frozen=True)
class ModelEntry:
    """How to learn a model's integers without its weights, and how to load it."""

    geometry: Callable[[Path | None], ModelGeometry]
    load: Callable[[Path | None, str, torch.dtype], VideoModel]


def _demo_geometry(weights: Path | None) -> ModelGeometry:
    from pagedvid.models.demo.model import read_geometry

    return read_geometry(weights)


def _load_demo(weights: Path | None, device: str, dtype: torch.dtype) -> VideoModel:
    from pagedvid.models.demo.model import DemoModel

    return DemoModel.load(weights, device, dtype)


_MODELS = {"demo": ModelEntry(_demo_geometry, _load_demo)}


def model_geometry(name: str, weights: Path | None = None) -> ModelGeometry:
    """The integers of a model; its weights are not read. Raises ConfigError."""
    return _entry(name).geometry(weights)


def load_model(name: str, weights: Path | None, device: str, dtype: torch.dtype) -> VideoModel:
    """A model ready to run; `weights` None means those shipped with pagedvid. Raises ConfigError."""
    return _entry(name).load(weights, device, dtype)


def _entry(name: str) -> ModelEntry:
    if name not in _MODELS:
        raise ConfigError(f"unknown model {name!r}; known are {', '.join(_MODELS)}")
    return _MODELS[name]
