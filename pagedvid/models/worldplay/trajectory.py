"""Camera trajectories from a JSON file: where the camera is in every latent frame, and which action led there.

    {
      "frames": [
        {"viewmat": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]],    world to camera, rigid
         "K": [[0.97, 0, 0.5], [0, 1.72, 0.5], [0, 0, 1]],                       fx / (2 cx), fy / (2 cy); rest ignored
         "action": 0},                                                           9 * translation + rotation
        ...                                                                      one entry per latent frame
      ]
    }

A label of translation is 0 for none, 1 to 4 for forward, backward, right, left, 5 to 8 for pairs of them; one of
rotation 0 for none, 1 to 4 for yaw right, yaw left, pitch up, pitch down, 5 to 8 for pairs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.files.paths import read_json
from pagedvid.models.worldplay.camera import Cameras
from pagedvid.shown import named

NUM_ACTIONS = 81


@dataclass(frozen=True)
class Trajectory:
    """Cameras and action ids (int64 [F]) of all latent frames of a video."""

    cameras: Cameras
    actions_F: Tensor

    def __post_init__(self) -> None:
        if len(self.actions_F) != len(self.cameras):
            raise ConfigError(f"{len(self.actions_F)} actions were given for {len(self.cameras)} cameras")
        for frame, action in enumerate(self.actions_F.tolist()):
            if not 0 <= action < NUM_ACTIONS:
                raise ConfigError(f"the action of frame {frame} is {action}; allowed are 0 to {NUM_ACTIONS - 1}")

    def __len__(self) -> int:
        return len(self.cameras)


def read_trajectory(path: Path) -> Trajectory:
    """The trajectory of a JSON file. Raises ConfigError naming the file and the first frame that is wrong."""
    try:
        content = read_json(path, "give a trajectory as JSON")
    except ConfigError as error:
        raise ConfigError(f"the trajectory cannot be read: {error}") from error
    try:
        frames = content["frames"]
        views = torch.tensor([_matrix(frame, i, "viewmat", 4) for i, frame in enumerate(frames)], dtype=torch.float64)
        intrinsics = torch.tensor([_matrix(frame, i, "K", 3) for i, frame in enumerate(frames)], dtype=torch.float64)
        actions = torch.tensor([_action(frame, i) for i, frame in enumerate(frames)], dtype=torch.int64)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = error if isinstance(error, ConfigError) else repr(error)
        raise ConfigError(
            f'{named(path)} is not a trajectory: {reason}; expected is {{"frames": [{{"viewmat", "K", "action"}}, '
            "...]}"
        ) from error
    if not len(actions):
        raise ConfigError(f"{path} has no frames; give one entry per latent frame")
    try:
        return Trajectory(Cameras.of(views, intrinsics), actions)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _matrix(frame: dict[str, Any], number: int, key: str, size: int) -> list[list[float]]:
    rows = frame.get(key)
    is_square = isinstance(rows, list) and [len(row) for row in rows if isinstance(row, list)] == [size] * size
    if not isinstance(rows, list) or not is_square or any(type(x) not in (int, float) for row in rows for x in row):
        raise ConfigError(f"{key} of frame {number} is {rows!r}, not a {size} x {size} matrix of numbers")
    return rows


def _action(frame: dict[str, Any], number: int) -> int:
    action = frame.get("action")
    if type(action) is not int:
        raise ConfigError(f"the action of frame {number} is {action!r}; expected is an integer")
    return action
