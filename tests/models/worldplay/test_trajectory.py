"""Trajectory files, and what is refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from pagedvid.errors import ConfigError
from pagedvid.models.worldplay.trajectory import Trajectory, read_trajectory
from tests.models.worldplay.recordings import cameras, inputs


def recorded_file(tmp_path, change=lambda frames: None):
    x = inputs("hy8b")
    frames = [
        {"viewmat": view.tolist(), "K": intrinsics.tolist(), "action": int(action)}
        for view, intrinsics, action in zip(x["viewmats"][0], x["Ks"][0], x["action"][0], strict=True)
    ]
    frames = copy.deepcopy(frames)
    change(frames)
    path = tmp_path / "path.json"
    path.write_text(json.dumps({"frames": frames}))
    return path


def test_a_file_gives_the_recorded_cameras(tmp_path):
    trajectory = read_trajectory(recorded_file(tmp_path))
    assert len(trajectory) == 32
    assert torch.equal(trajectory.cameras.views_F44, cameras("hy8b").views_F44)
    assert torch.equal(trajectory.cameras.focals_F2, cameras("hy8b").focals_F2)
    assert torch.equal(trajectory.actions_F, inputs("hy8b")["action"][0])


def set_value(frame, key, value):
    return lambda frames: frames[frame].__setitem__(key, value)


SKEWED = [[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_value(3, "viewmat", SKEWED), "the view matrix of frame 3 is not rigid"),
        (set_value(3, "viewmat", [[1, 0], [0, 1]]), "viewmat of frame 3 is .* not a 4 x 4 matrix of numbers"),
        (set_value(3, "viewmat", [["1"] * 4] * 4), "viewmat of frame 3 is .* not a 4 x 4 matrix of numbers"),
        (set_value(0, "K", [[0, 0, 0], [0, 1, 0], [0, 0, 1]]), "focal lengths of frame 0"),
        (set_value(0, "K", None), "K of frame 0 is None, not a 3 x 3 matrix"),
        (set_value(5, "action", 81), "the action of frame 5 is 81; allowed are 0 to 80"),
        (set_value(5, "action", -1), "the action of frame 5 is -1; allowed are 0 to 80"),
        (set_value(5, "action", "forward"), "the action of frame 5 is 'forward'; expected is an integer"),
        (set_value(5, "action", 1.5), "the action of frame 5 is 1.5; expected is an integer"),
        (lambda frames: frames.clear(), "has no frames"),
        (lambda frames: frames.append(7), "is not a trajectory"),
    ],
)
def test_wrong_frames_are_named(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        read_trajectory(recorded_file(tmp_path, change))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the trajectory cannot be read: .*other.json is empty"),
        ("{", "the trajectory cannot be read: .*other.json cannot be read as JSON"),
        *((content, "is not a trajectory") for content in ("[]", "{}", '{"frames": 3}', "null")),
    ],
)
def test_other_files_are_refused(tmp_path, content, message):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        read_trajectory(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"the trajectory cannot be read: .*nowhere\.json is missing"):
        read_trajectory(tmp_path / "nowhere.json")


def test_every_camera_has_an_action():
    with pytest.raises(ConfigError, match="31 actions were given for 32 cameras"):
        Trajectory(cameras("hy8b"), torch.zeros(31, dtype=torch.int64))
