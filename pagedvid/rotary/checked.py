"""The rotary tables of a host: checked whenever they are asked for, and kept on the device.

rope  ->  CheckedRope             raises ShapeError unless a table has a row per token and a column per pair
             |
             +->  DeviceRope      keeps the last few tables on the device; on a CPU the checked rope itself is used
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from pagedvid.errors import ShapeError, StateError
from pagedvid.host_state import plain_tensor
from pagedvid.rotary.tables import LAYOUTS, RopeTables

KEPT_TABLES, KEPT_ROPES = 16, 4
"""Tables per rope, and ropes, that are kept on a device: enough for the ranges of a few batches."""
SAME_ANGLE = 1e-3
"""Cosines and sines that differ by less belong to one embedding, computed in different ways."""


class CheckedRope:
    """The `RopeTables` of a host. Raises ShapeError for an object that is none."""

    def __init__(self, rope: RopeTables, num_pairs: int) -> None:
        layout, tables = getattr(rope, "layout", None), getattr(rope, "tables", None)
        if layout not in LAYOUTS or not callable(tables):
            raise ShapeError(
                f"the rope is a {type(rope).__name__} with layout {layout!r}; give an object with a layout "
                f"({' or '.join(map(repr, LAYOUTS))}) and a method tables(first_token, num_tokens) -> (cos, sin)"
            )
        self.layout: str = layout
        self.host = rope
        self._num_pairs = num_pairs

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """The host's tables, float32; see `RopeTables.tables`. Raises ShapeError for tables of another size or type."""
        given: Any = self.host.tables(first_token, num_tokens)
        if not isinstance(given, (tuple, list)) or len(given) != 2:
            raise ShapeError(f"rope.tables gave a {type(given).__name__}; it must return the pair (cos, sin)")
        cos, sin = (_as_table(name, table) for name, table in zip(("cos", "sin"), given, strict=True))
        for table in (cos, sin):
            self._check(table, first_token, num_tokens)
        return cos, sin

    def _check(self, table: Tensor, first_token: int, num_tokens: int) -> None:
        if table.ndim == 2 and table.shape[1] != self._num_pairs:
            raise ShapeError(
                f"rotary tables have {table.shape[1]} columns; head_dim {2 * self._num_pairs} needs {self._num_pairs} "
                "(channels that do not rotate have cos 1 and sin 0)"
            )
        if table.shape != (num_tokens, self._num_pairs):
            raise ShapeError(
                f"rope.tables({first_token}, {num_tokens}) gave a table of shape {tuple(table.shape)}; it must have a "
                f"row for each token: {(num_tokens, self._num_pairs)}. Tables must reach one chunk beyond the last one "
                "that is committed, since its correction is measured on queries at the next chunk's positions"
            )


def require_same_rope(rope: CheckedRope | None, stored: CheckedRope | None, position: int, num_tokens: int) -> None:
    """Raises StateError unless keys that were stored under `stored` at `position` rotate alike under `rope`."""
    if rope is None or stored is None:
        is_same = rope is stored
    else:
        is_same = rope.host is stored.host or (
            rope.layout == stored.layout
            and _are_alike(rope.tables(position, num_tokens), stored.tables(position, num_tokens))
        )
    if not is_same:
        raise StateError(
            f"keys were stored under {_named(stored)} and are read under {_named(rope)}, which rotates them by other "
            "angles; give all passes of a stream the same rope, or open a new stream"
        )


def _are_alike(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> bool:
    return all(torch.allclose(x, y.to(x.device), rtol=0, atol=SAME_ANGLE) for x, y in zip(a, b, strict=True))


def _named(rope: CheckedRope | None) -> str:
    return "no rope" if rope is None else f"a {type(rope.host).__name__} ({rope.layout})"


def _as_table(name: str, given: object) -> Tensor:
    """A table, which may be a numpy array, as a float32 tensor without gradients. Raises ShapeError."""
    table = plain_tensor(name, given if isinstance(given, Tensor) else torch.as_tensor(given))
    if not table.is_floating_point():
        raise ShapeError(f"rope.tables gave {name} in {table.dtype}; cosines and sines must be floating point")
    return table.detach().float()


class DeviceRope:
    """The tables of a checked rope on a device, where the last few are kept."""

    def __init__(self, rope: CheckedRope, device: torch.device) -> None:
        self.layout = rope.layout
        self.checked = rope
        self._device = device
        self._tables: OrderedDict[tuple[int, int], tuple[Tensor, Tensor]] = OrderedDict()

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """The rope's tables on the device; see `RopeTables.tables`."""
        key = (first_token, num_tokens)
        if key not in self._tables:
            cos, sin = self.checked.tables(first_token, num_tokens)
            self._tables[key] = cos.to(self._device), sin.to(self._device)
            if len(self._tables) > KEPT_TABLES:
                self._tables.popitem(last=False)
        self._tables.move_to_end(key)
        return self._tables[key]


class Ropes:
    """The last few ropes that a cache was given."""

    def __init__(self, num_pairs: int, device: torch.device) -> None:
        self._num_pairs = num_pairs
        self._device = device
        self._ropes: OrderedDict[int, tuple[CheckedRope, RopeTables]] = OrderedDict()

    def checked(self, rope: RopeTables) -> CheckedRope:
        """The rope with its tables checked; a `CheckedRope` is returned as it is. Raises ShapeError."""
        if isinstance(rope, DeviceRope):
            return rope.checked
        return rope if isinstance(rope, CheckedRope) else self._find(rope)[0]

    def on_device(self, rope: RopeTables) -> RopeTables:
        """The rope with its tables checked and on the device. Raises ShapeError."""
        return self._find(rope)[1]

    def _find(self, rope: RopeTables) -> tuple[CheckedRope, RopeTables]:
        if id(rope) not in self._ropes:  # the entry keeps the rope alive, so that no other object gets its id
            checked = CheckedRope(rope, self._num_pairs)
            self._ropes[id(rope)] = (
                checked,
                checked if self._device.type == "cpu" else DeviceRope(checked, self._device),
            )
            if len(self._ropes) > KEPT_ROPES:
                self._ropes.popitem(last=False)
        self._ropes.move_to_end(id(rope))
        return self._ropes[id(rope)]
