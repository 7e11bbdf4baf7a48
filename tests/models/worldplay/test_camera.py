"""Cameras and what is refused as one."""

from __future__ import annotations

import pytest
import torch

from pagedvid.errors import ConfigError
from pagedvid.models.worldplay.camera import Cameras
from tests.models.worldplay.recordings import cameras


def test_the_two_matrices_are_each_other_s_inverse():
    some = cameras("hy8b")
    identity = torch.eye(4, dtype=torch.float64).expand(len(some), 4, 4)
    torch.testing.assert_close(some.image_from_world() @ some.world_from_image(), identity, rtol=0, atol=1e-6)


def test_the_matrices_are_focal_lengths_times_view():
    view = torch.eye(4)
    view[:3, 3] = torch.tensor([1.0, 2.0, 3.0])
    intrinsics = torch.tensor([[0.5, 0, 0.7], [0, 0.8, 0.7], [0, 0, 1]])
    camera = Cameras.of(view[None], intrinsics[None])
    expected = torch.tensor([[0.5, 0, 0, 0.5], [0, 0.8, 0, 1.6], [0, 0, 1, 3], [0, 0, 0, 1]])
    torch.testing.assert_close(camera.image_from_world()[0].float(), expected)


def test_select_keeps_the_order():
    some = cameras("hy8b")
    picked = some.select((5, 2))
    assert torch.equal(picked.views_F44, some.views_F44[[5, 2]])


def not_rigid():
    scaled = torch.eye(4)
    scaled[0, 0] = 1.1
    mirrored = torch.eye(4)
    mirrored[0, 0] = -1.0
    projective = torch.eye(4)
    projective[3, 0] = 0.1
    infinite = torch.eye(4)
    infinite[0, 3] = float("nan")
    return {"scaled": scaled, "mirrored": mirrored, "projective": projective, "nan": infinite}


@pytest.mark.parametrize("kind", not_rigid())
def test_matrices_that_are_not_rigid_are_refused(kind):
    views = torch.stack([torch.eye(4), not_rigid()[kind]])
    with pytest.raises(ConfigError, match="frame 1 is not rigid"):
        Cameras.of(views, torch.eye(3).repeat(2, 1, 1))


def test_focal_lengths_must_be_positive():
    intrinsics = torch.eye(3).repeat(2, 1, 1)
    intrinsics[1, 1, 1] = 0.0
    with pytest.raises(ConfigError, match=r"focal lengths of frame 1 are \[1.0, 0.0\]"):
        Cameras.of(torch.eye(4).repeat(2, 1, 1), intrinsics)


def test_counts_must_agree():
    with pytest.raises(ConfigError, match=r"view matrices \[2, 4, 4\] and intrinsics \[3, 3, 3\]"):
        Cameras.of(torch.eye(4).repeat(2, 1, 1), torch.eye(3).repeat(3, 1, 1))
