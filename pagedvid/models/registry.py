"""The models that pagedvid knows by name. Nothing of a model is imported before it is asked for.

To add a model: a file or folder under models/ with a class that satisfies `VideoModel`, and one entry in `_MODELS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from pagedvid.errors import ConfigError
from pagedvid.geometry import Window
from pagedvid.models.base import ModelGeometry, VideoModel
from pagedvid.models.rounds import Schedule

if TYPE_CHECKING:
    from pagedvid.models.magi1.config import MagiConfig
    from pagedvid.models.text_encoder import TextEncoder


@dataclass(frozen=True)
class ModelFiles:
    """Where the parts of a model lie, each None when not given."""

    weights: Path | None = None
    text_encoder: Path | None = None
    vae: Path | None = None


@dataclass(frozen=True)
class ModelEntry:
    """How to learn a model's integers and order of work without its weights, and how to load it."""

    geometry: Callable[[Path | None], ModelGeometry]
    """From the place of its weights, or from what is published when there are none."""
    schedule: Callable[[Path | None, int, int | None, Window], Schedule]
    """From the place of its weights, frames, denoise steps (None: its own number) and the configured window."""
    load: Callable[[ModelFiles, str, torch.dtype], VideoModel]
    writes_latents: bool = False
    """Whether latents come out unless a VAE is given."""


def model_geometry(name: str, weights: Path | None = None) -> ModelGeometry:
    """The integers of a model; its weights are not read. Raises ConfigError."""
    return _entry(name).geometry(weights)


def model_schedule(
    name: str, weights: Path | None, num_frames: int, num_denoise_steps: int | None, window: Window
) -> Schedule:
    """How a video of so many frames would be worked on; the model's weights are not read. Raises ConfigError."""
    return _entry(name).schedule(weights, num_frames, num_denoise_steps, window)


def writes_latents(name: str, vae: Path | None) -> bool:
    """Whether the model's outputs are latents rather than frames. Raises ConfigError."""
    return _entry(name).writes_latents and vae is None


def load_model(
    name: str,
    weights: Path | None,
    device: str,
    dtype: torch.dtype,
    *,
    text_encoder: Path | None = None,
    vae: Path | None = None,
) -> VideoModel:
    """A model ready to run; `weights` None means those shipped with pagedvid. Raises ConfigError."""
    return _entry(name).load(ModelFiles(weights, text_encoder, vae), device, dtype)


def _entry(name: str) -> ModelEntry:
    if name not in _MODELS:
        raise ConfigError(f"unknown model {name!r}; known are {', '.join(_MODELS)}")
    return _MODELS[name]


def _text_encoder(files: ModelFiles, kind: str, width: int, device: str) -> TextEncoder | None:
    if files.text_encoder is None:
        return None
    from pagedvid.integrations.text_encoders import T5TextEncoder

    return T5TextEncoder(files.text_encoder, kind, width, device)


# ---------------------------------------------------------------------- demo


def _demo_geometry(weights: Path | None) -> ModelGeometry:
    from pagedvid.models.demo.model import read_geometry

    return read_geometry(weights)


def _demo_schedule(weights: Path | None, num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
    from pagedvid.models.chunk_by_chunk import chunk_by_chunk

    levels = (1.0,) * (num_denoise_steps or 1) + (0.0,)  # what the levels are does not change the order of work
    return chunk_by_chunk(_demo_geometry(weights), num_frames, levels, window)


def _load_demo(files: ModelFiles, device: str, dtype: torch.dtype) -> VideoModel:
    from pagedvid.models.demo.model import DemoModel

    if files.text_encoder or files.vae:
        raise ConfigError("the demo model needs neither a text encoder nor a VAE; remove model.text_encoder, model.vae")
    return DemoModel.load(files.weights, device, dtype)


# ---------------------------------------------------------------------- MAGI-1


def _magi_config(name: str, weights: Path | None) -> MagiConfig:
    from pagedvid.models.magi1.config import config_of

    return config_of(name, weights)


def _magi_geometry(name: str, weights: Path | None) -> ModelGeometry:
    from pagedvid.models.magi1.model import geometry_of

    return geometry_of(_magi_config(name, weights))


def _magi_schedule(
    name: str, weights: Path | None, num_frames: int, num_denoise_steps: int | None, window: Window
) -> Schedule:
    from pagedvid.models.magi1.schedule import magi_schedule

    config = _magi_config(name, weights)
    num_steps = num_denoise_steps or config.sampling.num_steps
    return magi_schedule(config.sampling, config.frames.chunk_width, num_steps, num_frames)


def _load_magi(name: str, files: ModelFiles, device: str, dtype: torch.dtype) -> VideoModel:
    from pagedvid.models.magi1.model import MagiModel

    if files.weights is None:
        raise ConfigError(f"{name} ships without weights: give --weights PATH, the folder of the published checkpoint")
    if files.vae is not None:
        raise ConfigError(
            f"{name} has a VAE of its own that no library here has: leave model.vae out, latents come out"
        )
    config = _magi_config(name, files.weights)
    encoder = _text_encoder(files, "t5", config.network.caption_channels, device)
    return MagiModel.load(config, files.weights, device, dtype, encoder)


# ---------------------------------------------------------------------- HY-WorldPlay


def _worldplay_geometry(name: str, weights: Path | None) -> ModelGeometry:
    from pagedvid.models.worldplay import model_8b, model_wan5b

    return (model_8b if name == WORLDPLAY_8B else model_wan5b).read_geometry(weights)


def _worldplay_schedule(
    name: str, weights: Path | None, num_frames: int, num_denoise_steps: int | None, window: Window
) -> Schedule:
    from pagedvid.models.worldplay import model_8b, model_wan5b

    return (model_8b if name == WORLDPLAY_8B else model_wan5b).read_schedule(num_frames, num_denoise_steps)


def _load_worldplay(name: str, files: ModelFiles, device: str, dtype: torch.dtype) -> VideoModel:
    from pagedvid.models.worldplay.config import read_config_wan5b
    from pagedvid.models.worldplay.model_8b import WorldPlay8B
    from pagedvid.models.worldplay.model_wan5b import WorldPlayWan5B

    if files.weights is None:
        raise ConfigError(f"{name} ships without weights: give --weights PATH")
    if files.vae is not None:
        raise ConfigError(
            f"{name} has a VAE that decodes whole videos: leave model.vae out, and decode the latents that come out "
            "by `pagedvid decode`"
        )
    if name == WORLDPLAY_5B:
        encoder = _text_encoder(files, "umt5", read_config_wan5b(files.weights).text_channels, device)
        return WorldPlayWan5B.load(files.weights, device, dtype, encoder)
    if files.text_encoder is not None:
        raise ConfigError(
            f"{name} reads three encoders (Qwen2.5-VL, ByT5, SigLIP) that are not run here: leave model.text_encoder "
            'out and give requests their outputs in a file (the input "embeddings")'
        )
    return WorldPlay8B.load(files.weights, device, dtype)


WORLDPLAY_8B, WORLDPLAY_5B = "hy-worldplay-8b", "hy-worldplay-5b"
_MAGI_NAMES = ("magi-1-4.5b", "magi-1-4.5b-distill", "magi-1-24b", "magi-1-24b-distill")

_MODELS = {
    "demo": ModelEntry(_demo_geometry, _demo_schedule, _load_demo),
    **{
        name: ModelEntry(
            partial(_magi_geometry, name), partial(_magi_schedule, name), partial(_load_magi, name), writes_latents=True
        )
        for name in _MAGI_NAMES
    },
    **{
        name: ModelEntry(
            partial(_worldplay_geometry, name),
            partial(_worldplay_schedule, name),
            partial(_load_worldplay, name),
            writes_latents=True,
        )
        for name in (WORLDPLAY_8B, WORLDPLAY_5B)
    },
}
