"""Rotary embedding, its inverse, and the one channel layout used inside pagedvid.

Keys are stored before rotary embedding. Inside pagedvid the pairs are always "half": channel c turns with channel
c + D/2. A host with the "interleaved" layout (2c with 2c + 1) has its query and key channels permuted once per call;
scores do not change when both are permuted alike, and values and outputs are not touched at all.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.rope_grid import RopeGrid

LAYOUTS = ("half", "interleaved")


class RopeTables(Protocol):
    """Rotary tables by token offset; `layout` says which channels form a pair."""

    @property
    def layout(self) -> str:
        """Either "half" (channel c pairs with c + D/2) or "interleaved" (2c with 2c + 1)."""
        ...

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [num_tokens, D/2], of the tokens from `first_token` on."""
        ...


@runtime_checkable
class GridRope(RopeTables, Protocol):
    """Rotary tables that know their grid: kernels then read a row for each frame in place of one for each token."""

    @property
    def grid(self) -> RopeGrid:
        """What `tables` follow; `AxisTables.at` shows what is made of it."""
        ...


def grid_of(rope: RopeTables, num_pairs: int) -> RopeGrid:
    """The grid of rotary tables of `num_pairs` columns: their own, or else frames of one token.

    Raises ConfigError for a grid that is not one of these tables.
    """
    if not isinstance(rope, GridRope):
        return RopeGrid.by_token(num_pairs)
    if not isinstance(rope.grid, RopeGrid):
        raise ConfigError(f"the grid of a {type(rope).__name__} is {rope.grid!r}; give a RopeGrid, or leave it out")
    if len(rope.grid.axes) != num_pairs:
        raise ConfigError(
            f"the grid of a {type(rope).__name__} has axes of {len(rope.grid.axes)} pairs, its tables have {num_pairs} "
            "columns; give one axis for each column"
        )
    return rope.grid


KEPT_TABLES, KEPT_ROPES = 16, 4
"""Tables of a rope, and ropes, that are kept on a device: the ranges of a few batches."""


class DeviceRope:
    """Rotary tables on a device; the last few are kept there."""

    def __init__(self, rope: RopeTables, device: torch.device) -> None:
        self.layout = rope.layout
        self._rope = rope
        self._device = device
        self._tables: OrderedDict[tuple[int, int], tuple[Tensor, Tensor]] = OrderedDict()

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """See `RopeTables.tables`."""
        key = (first_token, num_tokens)
        if key not in self._tables:
            cos, sin = self._rope.tables(first_token, num_tokens)
            self._tables[key] = cos.to(self._device), sin.to(self._device)
            if len(self._tables) > KEPT_TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]


class DeviceRopes:
    """The last few ropes of a cache, each with its tables on the device."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ropes: OrderedDict[int, tuple[RopeTables, DeviceRope]] = OrderedDict()

    def of(self, rope: RopeTables) -> RopeTables:
        """The rope with tables on the device; on a CPU itself."""
        if self._device.type == "cpu":
            return rope
        if id(rope) not in self._ropes:  # what is kept holds the rope, so that its id is given to no other
            self._ropes[id(rope)] = rope, DeviceRope(rope, self._device)
            if len(self._ropes) > KEPT_ROPES:
                self._ropes.popitem(last=False)
        self._ropes.move_to_end(id(rope))
        return self._ropes[id(rope)][1]


def to_half_layout(x: Tensor, layout: str) -> Tensor:
    """Channels of `x` [..., D] in half layout; returns `x` itself when it already is."""
    if layout == "half":
        return x
    if layout == "interleaved":
        return torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
    raise ConfigError(f"unknown rotary layout {layout!r}; allowed are {', '.join(LAYOUTS)}")


def from_half_layout(x: Tensor, layout: str) -> Tensor:
    """Inverse of `to_half_layout`."""
    return x if layout == "half" else torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Half-layout `x` [..., D] turned by the angles of `cos`, `sin` (same dtype, broadcastable to [..., D/2]).

    Written into `out` when given, which must not overlap `x`.
    """
    first, second = x.chunk(2, dim=-1)
    out = torch.empty_like(x) if out is None else out
    out_first, out_second = out.chunk(2, dim=-1)
    torch.addcmul(first * cos, second, sin, value=-1, out=out_first)
    torch.addcmul(second * cos, first, sin, out=out_second)
    return out


def unrotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Inverse of `rotate`."""
    return rotate(x, cos, -sin)


def pair_mean_square(q: Tensor) -> Tensor:
    """(q_c^2 + q_c'^2) / 2 of each half-layout pair, [..., D] -> [..., D]. Rotation leaves it as it is, so it may be
    taken before or after rotary embedding."""
    square = q.float().square()
    first, second = square.chunk(2, dim=-1)
    mean = (first + second) / 2
    return torch.cat([mean, mean], dim=-1)


def turned(k_HnD: Tensor, rope: RopeTables | None, position: int, *, backwards: bool = False) -> Tensor:
    """Half-layout keys [H, n, D] turned to consecutive positions from `position` on, or back; None: as they are."""
    if rope is None:
        return k_HnD
    cos, sin = (table.to(k_HnD.device) for table in rope.tables(position, k_HnD.shape[1]))
    return unrotate(k_HnD, cos, sin) if backwards else rotate(k_HnD, cos, sin)
