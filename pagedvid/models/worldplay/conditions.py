"""What steers one video: text, first image, cameras, actions; and the file that brings the encoders' outputs.

The image encoders, and the text encoders of the 8B, are not run here. What the encoders give comes in a safetensors
file with the names below, batch axis of 1 included; a mask marks the rows that count.

    8B       prompt_embeds [1, n, C], prompt_mask [1, n], byt5_states [1, m, C], byt5_mask [1, m],
             vision_states [1, s, C], image_cond [1, latent channels, 1, rows, columns]
    WAN-5B   prompt_embeds [1, n, C] (all rows are read, padding included; may be left out where there is a text
             encoder), image_latent like image_cond
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.files.tensor_files import read_tensors, refuse_odd_dtype
from pagedvid.models.worldplay.camera import Cameras
from pagedvid.models.worldplay.trajectory import Trajectory, read_trajectory

INPUT_NAMES = ("trajectory", "embeddings")


@dataclass(frozen=True)
class Condition:
    """Everything that steers one video, ready for the network."""

    cameras: Cameras
    actions_F: Tensor
    text: Any
    """What the network's `encode_text` gave."""
    image_nC: Tensor
    """Latents of the first image, one frame of tokens."""


def read_inputs(inputs: Mapping[str, Any], num_frames: int) -> tuple[Trajectory, Mapping[str, Tensor]]:
    """Trajectory and encoders' outputs of a request for `num_frames` latent frames, whole chunks.

    Each of `inputs` is the path of its file, or what such a file holds. Raises ConfigError.
    """
    unknown, missing = sorted(inputs.keys() - set(INPUT_NAMES)), [name for name in INPUT_NAMES if name not in inputs]
    if unknown or missing:
        raise ConfigError(
            f"the inputs of a HY-WorldPlay request are {' and '.join(INPUT_NAMES)}; "
            f"missing: {', '.join(missing) or 'none'}, unknown: {', '.join(unknown) or 'none'}"
        )
    trajectory = inputs["trajectory"]
    if not isinstance(trajectory, Trajectory):
        trajectory = read_trajectory(Path(trajectory))
    if len(trajectory) != num_frames:
        raise ConfigError(
            f"the trajectory has {len(trajectory)} frames, the video {num_frames} latent frames in whole chunks of 4; "
            "give a camera for each, or ask for as many frames"
        )
    return trajectory, read_embeddings(inputs["embeddings"])


def read_embeddings(source: Any) -> Mapping[str, Tensor]:
    """The tensors of an embeddings file, or `source` itself when it is a table of tensors. Raises ConfigError."""
    if isinstance(source, Mapping):
        return source
    return read_tensors(Path(source), "the embeddings")


def states(embeddings: Mapping[str, Tensor], name: str, channels: int, mask: str | None = None) -> Tensor:
    """The rows of one encoder's output that its mask marks, [n, channels]. Raises ConfigError."""
    x = _tensor(embeddings, name)
    if x.ndim != 3 or x.shape[0] != 1 or x.shape[2] != channels:
        raise ConfigError(f"{name} has shape {list(x.shape)}; this model takes [1, rows, {channels}]")
    refuse_odd_dtype(x, name)
    if mask is None:
        return x[0]
    kept = _tensor(embeddings, mask)
    if kept.shape != x.shape[:2]:
        raise ConfigError(f"{mask} has shape {list(kept.shape)}; {name} has {x.shape[1]} rows")
    return x[0][kept[0] != 0]


def image_grid(embeddings: Mapping[str, Tensor], name: str, channels: int, rows: int, columns: int) -> Tensor:
    """Latents of the first image, [channels, 1, rows, columns]. Raises ConfigError."""
    x = _tensor(embeddings, name)
    expected = [1, channels, 1, rows, columns]
    if list(x.shape) != expected:
        raise ConfigError(f"{name} has shape {list(x.shape)}; this model and resolution take {expected}")
    refuse_odd_dtype(x, name)
    return x[0]


def _tensor(embeddings: Mapping[str, Tensor], name: str) -> Tensor:
    if name not in embeddings:
        raise ConfigError(f"the embeddings lack {name}; they have {', '.join(sorted(embeddings)) or 'nothing'}")
    x = embeddings[name]
    if x.is_floating_point() and not bool(torch.isfinite(x.float()).all()):
        raise ConfigError(f"{name} has NaN or infinite values; encode the prompt and the image again")
    return x
