"""The models that pagedvid knows by name. Nothing of a model is imported before it is asked for.

To add a model: a folder under models/ with a class that satisfies `VideoModel` and a module `weights.py` with
`model_spec(config: ModelConfig) -> ModelSpec`, and its names in `_FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from pagedvid.config.sections import ModelConfig
from pagedvid.errors import ConfigError
from pagedvid.files.paths import is_file, is_folder
from pagedvid.models.common.checkpoint_files import TABLES_FILE_NAME
from pagedvid.shown import shown

if TYPE_CHECKING:
    from pagedvid.engine.protocol import ModelSpec


@dataclass(frozen=True)
class _Family:
    """What is known of a family before anything of it is imported."""

    folder: str
    """Under pagedvid/models."""
    names: tuple[str, ...]
    has_frame_size: bool = False
    """Whether `height` and `width` can be chosen."""
    has_ar_step: bool = False
    """Whether chunks can be worked on `ar_step` steps apart."""
    has_sampling: bool = False
    """Whether guidance, noise levels and the noise on given frames can be chosen."""
    has_special_tokens: bool = False
    """Whether captions have special tokens."""
    takes_loras: bool = False
    """Whether LoRAs can be added to its weights."""
    has_one_attention: bool = True
    """Whether its blocks only attend to their own tokens and history, so that it can be compiled and recorded."""
    shipped: Path | None = None
    """Folder of the weights that come with pagedvid."""


_FAMILIES = (
    _Family("demo", ("demo",), shipped=Path(__file__).parent / "demo" / "weights"),
    _Family("walk", ("walk",), shipped=Path(__file__).parent / "walk" / "weights"),
    _Family(
        "magi1", ("magi-1-4.5b", "magi-1-4.5b-distill", "magi-1-24b", "magi-1-24b-distill"), has_special_tokens=True
    ),
    _Family("worldplay", ("hy-worldplay-8b", "hy-worldplay-5b"), has_one_attention=False),
    _Family(
        "wan.causal", ("self-forcing", "causvid", "krea-14b", "longlive-2-5b"), has_frame_size=True, takes_loras=True
    ),
    _Family(
        "wan.skyreels",
        ("skyreels-v2-1.3b", "skyreels-v2-14b"),
        has_frame_size=True,
        has_ar_step=True,
        has_sampling=True,
        takes_loras=True,
    ),
)
_BY_NAME = {name: family for family in _FAMILIES for name in family.names}


def model_spec(config: ModelConfig) -> ModelSpec:
    """What is known of the configured model before its weights are read. Raises ConfigError."""
    family = _family(config.name)
    _refuse_settings_of_others(config, family)
    _check_cuda_graphs(config)
    spec: ModelSpec = import_module(f"pagedvid.models.{family.folder}.weights").model_spec(config)
    return spec


def _refuse_settings_of_others(config: ModelConfig, family: _Family) -> None:
    """Raises ConfigError for settings that mean nothing to this family."""
    default = ModelConfig()
    for names, has_them, why in (
        (("height", "width"), family.has_frame_size, "makes frames of one size"),
        (("ar_step",), family.has_ar_step, "begins chunks in an order of its own"),
        (("guidance_scale", "shift", "addnoise_condition"), family.has_sampling, "is sampled as published"),
        (("special_tokens", "null_special_tokens"), family.has_special_tokens, "has no special tokens"),
        (("loras",), family.takes_loras, "takes no LoRAs"),
        (("weights_dtype", "offload"), family.shipped is None, "is small and takes its weights as they are"),
        (("compile", "cuda_graphs"), family.has_one_attention, "has blocks that attend in two ways and to texts"),
    ):
        changed = [f"model.{name}" for name in names if getattr(config, name) != getattr(default, name)]
        if changed and not has_them:
            raise ConfigError(f"{config.name} {why}; remove {' and '.join(changed)}")


def _check_cuda_graphs(config: ModelConfig) -> None:
    """Raises ConfigError where no network can be recorded."""
    if not config.cuda_graphs:
        return
    if config.device == "cpu":
        raise ConfigError("model.cuda_graphs is for CUDA devices, and model.device is cpu; change one of them")
    if config.offload:
        raise ConfigError(
            "model.cuda_graphs records where weights are, but model.offload moves them in every step; remove one of "
            "them"
        )


def model_weights(name: str, weights: Path | None) -> Path | None:
    """The file or folder of a model's weights: `weights`, or those that ship with pagedvid, if any do. Raises
    ConfigError."""
    return weights or _family(name).shipped


def model_tables(name: str, weights: Path | None) -> Path | None:
    """The file of klt tables next to the weights; None when there is none. Raises ConfigError."""
    place = model_weights(name, weights)
    if place is None:
        return None
    path = (place if is_folder(place) else place.parent) / TABLES_FILE_NAME
    return path if is_file(path) else None


def _family(name: str) -> _Family:
    if name not in _BY_NAME:
        raise ConfigError(f"unknown model {shown(name)}; known are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]
