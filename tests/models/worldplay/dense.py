"""Self-attention in both copies as the original keeps it: two dense transformed copies of keys and values.

Written from the definition, in the dtype of the tensors: nothing of pagedvid's attention, rotation or projection.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedvid.models.worldplay.camera import Cameras
from pagedvid.models.worldplay.network_8b import TextKeys
from pagedvid.rotary.grid_rotary import GridRotary
from tests.models.worldplay.recordings import TOKENS_PER_FRAME


@dataclass
class DenseMemory:
    """Per layer k_rope, v, k_p, v_p [T, H, D]."""

    layers: dict[int, tuple[Tensor, Tensor, Tensor, Tensor]] = field(default_factory=dict)


def rotate_neighbours(x_THD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    turned = torch.view_as_complex(x_THD.unflatten(-1, (-1, 2)).contiguous()) * torch.complex(cos, sin).unsqueeze(1)
    return torch.view_as_real(turned).flatten(-2)


def map_points(x_THD: Tensor, matrices_F44: Tensor) -> Tensor:
    """Every four consecutive channels, by the matrix of the token's frame."""
    per_token = matrices_F44.to(x_THD.dtype).repeat_interleave(len(x_THD) // len(matrices_F44), dim=0)
    return torch.einsum("tij,thgj->thgi", per_token, x_THD.unflatten(-1, (-1, 4))).flatten(-2)


def attention(q_THD: Tensor, k: list[Tensor], v: list[Tensor]) -> Tensor:
    q, keys, values = (x.transpose(0, 1) for x in (q_THD, torch.cat(k), torch.cat(v)))
    return (torch.softmax(q @ keys.mT / q.shape[-1] ** 0.5, dim=-1) @ values).transpose(0, 1)


@dataclass
class DenseAttend:
    """`AttendTwice` of one piece."""

    rope: GridRotary
    cameras: Cameras
    """Of the piece's own frames."""
    first_slot: int
    memory: DenseMemory | None = None
    text: TextKeys | None = None
    builds: DenseMemory | None = None
    """Where a memory pass puts its keys and values."""
    seen: dict[int, tuple[Tensor, ...]] = field(default_factory=dict)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        tables = self.rope.tables(self.first_slot * TOKENS_PER_FRAME, len(q))
        forward, inverse = self.cameras.image_from_world(), self.cameras.world_from_image()
        k_rope, k_p, v_p = rotate_neighbours(k, *tables), map_points(k, inverse), map_points(v, inverse)
        keys, values = [[k_rope], [k_p]], [[v], [v_p]]
        if self.memory is not None:
            stored = self.memory.layers[layer]
            for copy in (0, 1):
                keys[copy].insert(0, stored[2 * copy])
                values[copy].insert(0, stored[2 * copy + 1])
        if self.text is not None:
            for copy in (0, 1):
                keys[copy].insert(0, self.text.keys[layer])
                values[copy].insert(0, self.text.values[layer])
        if self.builds is not None:
            self.builds.layers[layer] = (k_rope, v, k_p, v_p)
        q_rope, q_p = rotate_neighbours(q, *tables), map_points(q, forward.mT)
        out = [attention(q_rope, keys[0], values[0]), attention(q_p, keys[1], values[1])]
        self.seen[layer] = (q_rope, k_rope, v, q_p, k_p, v_p, *out)
        return out[0], map_points(out[1], forward)
