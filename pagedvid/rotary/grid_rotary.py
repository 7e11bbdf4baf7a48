"""Rotary embedding of video tokens: every pair of channels rotates with the frame, the row or the column of a token.

    angle of a pair = position of the token on the pair's axis * frequency of the pair            (radians)

Token n is in frame n // (rows * columns), row n // columns % rows and column n % columns; these pick its positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.arguments import instance_of, list_of, one_of, whole_number, whole_numbers
from pagedvid.errors import ConfigError, ShapeError
from pagedvid.handles import Compilable
from pagedvid.rotary.tables import LAYOUTS
from pagedvid.shown import shown

AXES = ("time", "row", "column")
CACHED_TABLES = 32
LARGEST_SIZE = 2**20
"""Of a head, of a frame's rows and columns, and of a cache of tables; a larger number is taken for a mistake."""
DTYPES = (torch.float32, torch.float64)


class GridRotary(Compilable):
    """`RopeTables` made from frequencies and positions. Use the same object for all layers and passes.

    `frequencies`: three tensors [pairs], float32 or float64, for the pairs that rotate with time, row and column, in
        the order of the tables' columns; empty for an axis that no pair rotates with. Angles are computed in their
        dtype and on their device.
    `axis_positions`: two tensors, [rows] and [columns] of a frame. The position in time is the frame number.
    `layout`: which channels form a pair, "half" (c and c + D/2) or "interleaved" (2c and 2c + 1).
    `head_dim`: D, if some pairs do not rotate; these come last. None: every pair has a frequency.
    `whole_frames`: whether `tables` refuses ranges of tokens that cut a frame.
    `num_cached`: how many of the last tables are kept.

    Raises ConfigError.
    """

    def __init__(
        self,
        frequencies: Sequence[Tensor],
        axis_positions: Sequence[Tensor],
        layout: str,
        *,
        head_dim: int | None = None,
        whole_frames: bool = False,
        num_cached: int = CACHED_TABLES,
    ) -> None:
        self.layout = one_of(LAYOUTS, "layout", layout, ConfigError)
        self._frequencies = _checked_frequencies(frequencies)
        self._rows, self._columns = _checked_positions(axis_positions, self._frequencies[0])
        self._num_still = _num_still_pairs(head_dim, sum(map(len, self._frequencies)))
        self._whole_frames = whole_frames
        self._num_cached = _size("num_cached", num_cached, 0)
        self._cached_tables = lru_cache(maxsize=self._num_cached)(self._compute)

    @override
    def __getstate__(self) -> dict[str, object]:
        """Without the cached tables: a copy computes its own."""
        return {name: value for name, value in super().__getstate__().items() if name != "_cached_tables"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._cached_tables = lru_cache(maxsize=self._num_cached)(self._compute)

    @staticmethod
    def from_theta(
        channels: Sequence[int],
        rows: int,
        columns: int,
        layout: str,
        *,
        theta: float = 10000.0,
        dtype: torch.dtype = torch.float64,
        whole_frames: bool = False,
    ) -> GridRotary:
        """The usual rotary embedding: `theta_frequencies` on every axis, at positions 0, 1, 2, ...

        `channels`: how many of a head's channels rotate with time, row and column; in Wan (44, 42, 42) of 128.
        Raises ConfigError.
        """
        sizes = whole_numbers("channels", channels, minimum=0, error=ConfigError)
        if len(sizes) != len(AXES):
            raise ConfigError(
                f"channels is {shown(sizes)}; give three numbers: how many channels of a head rotate with time, row "
                "and column, such as (44, 42, 42)"
            )
        frequencies = [theta_frequencies(size, theta, dtype) for size in sizes]
        positions = [
            torch.arange(_size(name, size, 1), dtype=dtype) for name, size in (("rows", rows), ("columns", columns))
        ]
        return GridRotary(frequencies, positions, layout, whole_frames=whole_frames)

    @staticmethod
    def of_sequence(frequencies: Tensor, layout: str, *, num_cached: int = CACHED_TABLES) -> GridRotary:
        """For tokens in one line, as in a text: every pair rotates with the token's number. Raises ConfigError."""
        instance_of(Tensor, "frequencies", frequencies, "a tensor [pairs], such as theta_frequencies(64)", ConfigError)
        none, origin = frequencies.new_empty(0), frequencies.new_zeros(1)
        return GridRotary((frequencies, none, none), (origin, origin), layout, num_cached=num_cached)

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [num_tokens, D/2], of the tokens from `first_token` on; cached: do not modify them.

        Raises ShapeError if only whole frames are allowed and the tokens cut one.
        """
        frame_tokens = len(self._rows) * len(self._columns)
        if self._whole_frames and (first_token % frame_tokens or num_tokens % frame_tokens):
            raise ShapeError(
                f"tokens {first_token} to {first_token + num_tokens} cut a frame of {frame_tokens} tokens; give whole "
                "frames"
            )
        return self._cached_tables(first_token, num_tokens)

    def _compute(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        rows, columns = len(self._rows), len(self._columns)
        tokens = torch.arange(first_token, first_token + num_tokens, dtype=torch.int64, device=self._rows.device)
        positions = (
            (tokens // (rows * columns)).to(self._rows.dtype),
            self._rows[tokens // columns % rows],
            self._columns[tokens % columns],
        )
        rotating = [place[:, None] * frequency for place, frequency in zip(positions, self._frequencies, strict=True)]
        still = self._rows.new_zeros(num_tokens, self._num_still)
        angles_TP = torch.cat([*rotating, still], dim=1)
        return angles_TP.cos().float(), angles_TP.sin().float()


def theta_frequencies(num_channels: int, theta: float = 10000.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """The usual frequencies of an even number of channels: theta ** (-2 i / num_channels) for pair i.

    Raises ConfigError.
    """
    if _size("num_channels", num_channels, 0) % 2:
        raise ConfigError(f"{num_channels} channels cannot rotate in pairs; give an even number")
    if isinstance(theta, bool) or not isinstance(theta, (int, float)) or not 0 < theta < 1e30:
        raise ConfigError(f"theta is {shown(theta)}; it must be a number above 0 and below 1e30, such as 10000.0")
    if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
        raise ConfigError(f"dtype is {shown(dtype)}; allowed are {', '.join(map(str, DTYPES))}")
    return float(theta) ** -(torch.arange(0, num_channels, 2, dtype=dtype) / max(num_channels, 1))


def _size(name: str, value: int, minimum: int) -> int:
    """The value as an integer. Raises ConfigError unless it is a whole number from `minimum` to LARGEST_SIZE."""
    return whole_number(name, value, minimum, LARGEST_SIZE, ConfigError)


def _vectors(name: str, given: Sequence[Tensor], axes: Sequence[str]) -> list[Tensor]:
    """A 1-D tensor for each axis, without gradients. Raises ConfigError."""
    tensors = list_of(Tensor, name, given, "[torch.tensor([1.0, 0.5])]", ConfigError)
    shapes = [tuple(each.shape) for each in tensors]
    if [len(shape) for shape in shapes] != [1] * len(axes):
        raise ConfigError(f"{name} are tensors of the shapes {shapes}; give one vector each for {', '.join(axes)}")
    return [each.detach() for each in tensors]


def _checked_frequencies(given: Sequence[Tensor]) -> list[Tensor]:
    """The frequencies of the three axes. Raises ConfigError unless they share a float dtype and a device."""
    frequencies = _vectors("frequencies", given, AXES)
    kinds = {(each.dtype, each.device) for each in frequencies}
    if len(kinds) > 1 or frequencies[0].dtype not in DTYPES:
        found = ", ".join(f"{each.dtype} on {each.device}" for each in frequencies)
        raise ConfigError(f"frequencies are {found}; give all in float32 or all in float64, on one device")
    return frequencies


def _checked_positions(given: Sequence[Tensor], like: Tensor) -> list[Tensor]:
    """Positions of rows and columns, in the dtype and on the device of `like`. Raises ConfigError if there are none."""
    positions = _vectors("axis_positions", given, AXES[1:])
    if any(len(each) == 0 for each in positions):
        raise ConfigError(
            f"axis_positions has {len(positions[0])} rows and {len(positions[1])} columns; give the position of each "
            "row and each column of a frame, at least one of both"
        )
    return [each.to(like) for each in positions]


def _num_still_pairs(head_dim: int | None, num_rotating: int) -> int:
    """Pairs of a head that do not rotate. Raises ConfigError if the rotating pairs do not fit into the head."""
    if head_dim is None:
        return 0
    size = _size("head_dim", head_dim, 2)
    if size % 2 or size < 2 * num_rotating:
        raise ConfigError(
            f"head_dim is {size}; {num_rotating} frequencies need an even number of at least {2 * num_rotating} "
            "channels"
        )
    return size // 2 - num_rotating
