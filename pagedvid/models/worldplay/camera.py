"""Cameras: the projective encoding PRoPE, as HY-WorldPlay uses it, and what a usable camera is.

Each latent frame has a rigid world-to-camera matrix V and normalised intrinsics K (focal lengths fx / (2 cx) and
fy / (2 cy); the principal point is ignored). Between image and world,

    P = diag(fx, fy, 1, 1) V,     P^-1 = V^-1 diag(1/fx, 1/fy, 1, 1),     V^-1 = [R^T, -R^T t; 0, 1]

and every group of four consecutive channels of a head is a point: q -> P^T q, k -> P^-1 k, v -> P^-1 v, out -> P out.

Axes: F frames.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.errors import ConfigError

RIGID_TOLERANCE = 1e-3
"""How far R R^T may be from the identity: files round to 4 digits or more."""


@dataclass(frozen=True)
class Cameras:
    """The cameras of some frames, float64: `views` [F, 4, 4] world to camera, `focals` [F, 2]."""

    views_F44: Tensor
    focals_F2: Tensor

    @staticmethod
    def of(viewmats_F44: Tensor, intrinsics_F33: Tensor) -> Cameras:
        """From view matrices and 3x3 intrinsics. Raises ConfigError naming the first frame that is no camera."""
        views, intrinsics = viewmats_F44.double(), intrinsics_F33.double()
        if views.ndim != 3 or views.shape[1:] != (4, 4) or intrinsics.shape != (len(views), 3, 3):
            raise ConfigError(
                f"view matrices {list(views.shape)} and intrinsics {list(intrinsics.shape)} do not belong together; "
                "expected are [frames, 4, 4] and [frames, 3, 3]"
            )
        focals = torch.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], dim=1)
        _check(views, focals)
        return Cameras(views, focals)

    @staticmethod
    def fixed(num_frames: int) -> Cameras:
        """A camera at the origin that looks along +z all the time."""
        view, focal = torch.eye(4, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
        return Cameras(view.expand(num_frames, 4, 4), focal.expand(num_frames, 2))

    def __len__(self) -> int:
        return len(self.views_F44)

    def select(self, frames: tuple[int, ...]) -> Cameras:
        """The cameras of these frames, in this order."""
        index = torch.tensor(frames, dtype=torch.int64)
        return Cameras(self.views_F44[index], self.focals_F2[index])

    def image_from_world(self) -> Tensor:
        """P, float64 [F, 4, 4]."""
        return _diagonal(self.focals_F2) @ self.views_F44

    def world_from_image(self) -> Tensor:
        """P^-1, float64 [F, 4, 4], by the rigid inverse of V."""
        rotation, translation = self.views_F44[:, :3, :3], self.views_F44[:, :3, 3:]
        inverse = torch.eye(4, dtype=torch.float64).repeat(len(self), 1, 1)
        inverse[:, :3, :3] = rotation.mT
        inverse[:, :3, 3:] = -rotation.mT @ translation
        return inverse @ _diagonal(1 / self.focals_F2)


@dataclass(frozen=True)
class CameraProjection:
    """PRoPE for the cache: ranges and stored chunks are tagged with the `Cameras` of their frames."""

    tokens_per_frame: int
    layout: str
    """Channel pairs of the model's rotary embedding."""

    def maps(self, tag: Cameras) -> tuple[Tensor, Tensor]:
        """(P, P^-1) of the tagged frames."""
        return tag.image_from_world(), tag.world_from_image()


def _diagonal(focals_F2: Tensor) -> Tensor:
    return torch.diag_embed(torch.cat([focals_F2, torch.ones_like(focals_F2)], dim=1))


def _check(views_F44: Tensor, focals_F2: Tensor) -> None:
    """Raises ConfigError for the first frame that is no camera."""
    rotation = views_F44[:, :3, :3]
    last_row = torch.tensor([0.0, 0.0, 0.0, 1.0], dtype=views_F44.dtype)
    deviation = (rotation @ rotation.mT - torch.eye(3, dtype=views_F44.dtype)).abs().flatten(1).amax(1)
    is_rigid_F = (
        torch.isfinite(views_F44).flatten(1).all(1)
        & (views_F44[:, 3] == last_row).all(1)
        & (deviation < RIGID_TOLERANCE)
        & (torch.linalg.det(rotation) > 0)
    )
    has_focals_F = (torch.isfinite(focals_F2) & (focals_F2 > 0)).all(1)
    wrong = (~(is_rigid_F & has_focals_F)).nonzero().flatten().tolist()
    if not wrong:
        return
    frame = wrong[0]
    if not is_rigid_F[frame]:
        raise ConfigError(
            f"the view matrix of frame {frame} is not rigid: {views_F44[frame].tolist()}; a world-to-camera matrix is "
            "[R, t; 0 0 0 1] with a rotation R (rows orthogonal and of length 1, determinant +1)"
        )
    raise ConfigError(f"the focal lengths of frame {frame} are {focals_F2[frame].tolist()}; they must be above 0")
