"""How tokens are arranged in frames, and which axis each pair of a rotary embedding rotates with.

Plain integers, so that a model can give them without knowing the cache.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagedvid.arguments import whole_number, whole_numbers
from pagedvid.errors import ConfigError

AXES = ("time", "row", "column")


@dataclass(frozen=True)
class RopeGrid:
    """The arrangement of tokens in frames, and the axis that each pair rotates with: its angle depends on that alone.

    Token n is in frame n // frame_tokens, and there in row n % frame_tokens // width and column n % width.
    """

    frame_tokens: int
    width: int
    axes: tuple[int, ...]
    """The axis of each column of the rotary tables, an index into `AXES`; any axis for pairs that do not rotate."""

    def __post_init__(self) -> None:
        for name in ("frame_tokens", "width"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), error=ConfigError))
        if self.width < 1 or self.frame_tokens < 1 or self.frame_tokens % self.width:
            raise ConfigError(
                f"a frame of {self.frame_tokens} tokens cannot be split into rows of {self.width}; frame_tokens must "
                "be a multiple of width, both at least 1"
            )
        object.__setattr__(self, "axes", whole_numbers("axes", self.axes, error=ConfigError))
        unknown = sorted(set(self.axes) - set(range(len(AXES))))
        if unknown:
            raise ConfigError(
                f"axes of rotary pairs are {unknown}; allowed are "
                + ", ".join(f"{number} ({name})" for number, name in enumerate(AXES))
            )

    @property
    def height(self) -> int:
        """Rows of a frame."""
        return self.frame_tokens // self.width

    @staticmethod
    def by_token(num_pairs: int) -> RopeGrid:
        """Frames of one token, with all pairs rotating with time. This grid fits any tables."""
        return RopeGrid(1, 1, (0,) * num_pairs)

    @staticmethod
    def split(height: int, width: int, pairs: Sequence[int]) -> RopeGrid:
        """Frames of `height` x `width` tokens. The first `pairs[0]` pairs rotate with time, the next `pairs[1]` with
        the row and the last `pairs[2]` with the column."""
        return RopeGrid(height * width, width, tuple(axis for axis, count in enumerate(pairs) for _ in range(count)))
