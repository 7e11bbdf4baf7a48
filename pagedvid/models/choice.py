"""What a user asks for besides a model's name, and what every family of models offers to the registry."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry, VideoModel
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ModelChoice:
    """Where a model's parts lie, each None when not given, and how it is run."""

    weights: Path | None = None
    text_encoder: Path | None = None
    vae: Path | None = None
    height: int | None = None
    """Pixels of a frame from top to bottom; None: the model's own."""
    width: int | None = None
    """Pixels of a frame from left to right; None: the model's own."""
    ema: bool = True
    """Of a checkpoint with averaged and last weights, take the averaged ones."""
    prompts: tuple[str, ...] = ()
    """Prompts to be encoded that are known beforehand: they come first, so that the text encoder is gone when the model
    is loaded."""

    def needed_weights(self, name: str) -> Path:
        """The weights of a model that ships without. Raises ConfigError."""
        if self.weights is None:
            raise ConfigError(f"{name} ships without weights: give --weights PATH, the published file or folder")
        return self.weights


class ModelFamily(Protocol):
    """The functions of a family's module `load.py`; `name` is one of the names under which the registry has it."""

    def geometry(self, name: str, choice: ModelChoice) -> ModelGeometry:
        """From the place of the weights, which are not read, or from what is published. Raises ConfigError."""
        ...

    def schedule(
        self, name: str, choice: ModelChoice, num_frames: int, num_denoise_steps: int | None, window: Window
    ) -> Schedule:
        """How a video of `num_frames` latent frames is worked on, in so many denoise steps (None: the model's own) and
        over the configured window; weights are not read. Raises ConfigError."""
        ...

    def load(self, name: str, choice: ModelChoice, device: str, dtype: torch.dtype) -> VideoModel:
        """The model ready to run. Raises ConfigError."""
        ...

    def writes_latents(self, choice: ModelChoice) -> bool:
        """Whether latents come out rather than frames. Raises ConfigError."""
        ...
