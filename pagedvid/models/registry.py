"""The models that pagedvid knows by name. Nothing of a model is imported before it is asked for.

To add a model: a folder under models/ with a class that satisfies `VideoModel`, a module `load.py` with the functions
of `ModelFamily` (choice.py), and its names in `_FAMILIES`.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, cast

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry, VideoModel
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.files.paths import is_file, is_folder
from pagedvid.models.choice import ModelChoice, ModelFamily
from pagedvid.models.common.checkpoint_files import TABLES_FILE_NAME
from pagedvid.shown import shown

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class _Family:
    """What is known of a family before anything of it is imported."""

    folder: str
    """Under pagedvid/models."""
    names: tuple[str, ...]
    has_frame_size: bool = False
    """Whether `height` and `width` can be chosen."""
    scale: int = 1
    """Enlargement of its frames in files unless settings say otherwise."""
    shipped: Path | None = None
    """Folder of the weights that come with pagedvid."""


_FAMILIES = (
    _Family("demo", ("demo",), scale=8, shipped=Path(__file__).parent / "demo" / "weights"),
    _Family("magi1", ("magi-1-4.5b", "magi-1-4.5b-distill", "magi-1-24b", "magi-1-24b-distill")),
    _Family("worldplay", ("hy-worldplay-8b", "hy-worldplay-5b")),
    _Family("wan.causal", ("self-forcing", "causvid", "krea-14b"), has_frame_size=True),
    _Family("wan.skyreels", ("skyreels-v2-1.3b", "skyreels-v2-14b"), has_frame_size=True),
)
_BY_NAME = {name: family for family in _FAMILIES for name in family.names}


def model_geometry(name: str, choice: ModelChoice | Path | None = None) -> ModelGeometry:
    """The integers of a model; its weights are not read. A path is that of weights. Raises ConfigError."""
    asked = _asked(name, choice)
    return _module(name).geometry(name, asked)


def model_schedule(
    name: str, choice: ModelChoice | Path | None, num_frames: int, num_denoise_steps: int | None, window: Window
) -> Schedule:
    """How a video of so many frames would be worked on; the model's weights are not read. Raises ConfigError."""
    asked = _asked(name, choice)
    return _module(name).schedule(name, asked, num_frames, num_denoise_steps, window)


def load_model(name: str, choice: ModelChoice | Path | None, device: str, dtype: torch.dtype) -> VideoModel:
    """A model ready to run; without weights, those shipped with pagedvid. Raises ConfigError."""
    asked = _asked(name, choice)
    return _module(name).load(name, asked, device, dtype)


def writes_latents(name: str, choice: ModelChoice | Path | None = None) -> bool:
    """Whether the model's outputs are latents rather than frames. Raises ConfigError."""
    asked = _asked(name, choice)
    return _module(name).writes_latents(asked)


def model_tables(name: str, weights: Path | None) -> Path | None:
    """The file of klt tables that lies beside the weights; None when there is none. Raises ConfigError."""
    place = weights or _family(name).shipped
    if place is None:
        return None
    path = (place if is_folder(place) else place.parent) / TABLES_FILE_NAME
    return path if is_file(path) else None


def default_scale(name: str) -> int:
    """How often every pixel is repeated in files unless settings say otherwise. Raises ConfigError."""
    return _family(name).scale


def _family(name: str) -> _Family:
    if name not in _BY_NAME:
        raise ConfigError(f"unknown model {shown(name)}; known are {', '.join(_BY_NAME)}")
    return _BY_NAME[name]


def _module(name: str) -> ModelFamily:
    return cast(ModelFamily, import_module(f"pagedvid.models.{_family(name).folder}.load"))


def _asked(name: str, choice: ModelChoice | Path | None) -> ModelChoice:
    asked = choice if isinstance(choice, ModelChoice) else ModelChoice(choice)
    if not _family(name).has_frame_size and (asked.height, asked.width) != (None, None):
        raise ConfigError(f"{name} makes frames of one size; remove model.height and model.width")
    return asked
