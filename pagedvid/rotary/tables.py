"""Rotary embedding, its inverse, and the one channel layout used inside pagedvid.

Keys are stored before rotary embedding. Inside pagedvid the layout is always "half": channel c rotates with channel
c + D/2. The channels of queries and keys from a host with the "interleaved" layout (2c with 2c + 1) are permuted once
per call. Scores do not change when both are permuted alike, and values and outputs are not permuted at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pagedvid.errors import ConfigError

LAYOUTS = ("half", "interleaved")


class RopeTables(Protocol):
    """Rotary tables by token offset. `rotary.grid_rotary.GridRotary` makes them from frequencies and positions."""

    @property
    def layout(self) -> str:
        """Either "half" (channel c pairs with c + D/2) or "interleaved" (2c with 2c + 1)."""
        ...

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [num_tokens, D/2], of the tokens from `first_token` on."""
        ...


def halves(x: Tensor, layout: str) -> tuple[Tensor, Tensor]:
    """The first and the second channel of each pair of `x` [..., D]: two views [..., D/2].

    Raises ConfigError for an unknown layout.
    """
    if layout == "half":
        return x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
    if layout == "interleaved":
        return x[..., 0::2], x[..., 1::2]
    raise ConfigError(f"unknown rotary layout {layout!r}; allowed are {', '.join(LAYOUTS)}")


def to_half_layout(x: Tensor, layout: str) -> Tensor:
    """`x` [..., D] with its channels in half layout; `x` itself if they are. Raises ConfigError for other layouts."""
    return x if layout == "half" else torch.cat(halves(x, layout), dim=-1)


def from_half_layout(x: Tensor, layout: str) -> Tensor:
    """Inverse of `to_half_layout`."""
    return x if layout == "half" else torch.stack(x.chunk(2, dim=-1), dim=-1).flatten(-2)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor | None = None) -> Tensor:
    """Half-layout `x` [..., D] rotated by the angles of `cos`, `sin` (same dtype, broadcastable to [..., D/2]).

    Written to `out` if given, which must not overlap `x`.
    """
    out = torch.empty_like(x) if out is None else out
    _rotate_halves(halves(x, "half"), cos, sin, out)
    return out


def _rotate_halves(x: tuple[Tensor, Tensor], cos: Tensor, sin: Tensor, out: Tensor) -> None:
    (first, second), (out_first, out_second) = x, halves(out, "half")
    torch.addcmul(first * cos, second, sin, value=-1, out=out_first)
    torch.addcmul(second * cos, first, sin, out=out_second)


def unrotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Inverse of `rotate`."""
    return rotate(x, cos, -sin)


def arrange(
    q_THD: Tensor | None,
    k_THD: Tensor,
    v_THD: Tensor | None,
    starts_M: Tensor,
    num_tokens: int,
    layout: str,
    angles: tuple[Tensor, Tensor] | None,
    q_out: Tensor | None,
    k_out: Tensor,
    v_out: Tensor | None,
) -> None:
    """Puts a step's packed queries, keys and values [T, heads, D] where attention reads them.

    M runs of `num_tokens` tokens, run m from packed token `starts_M[m]` (int32) on, are written to the outputs [M,
    num_tokens, heads, D], which have any strides with D innermost, in their dtype. Queries and keys are put into half
    layout and rotated in float32 by `angles`, (cos, sin) [T, D/2], if given; values are copied. None is left out.

    The same in one launch: rotary/kernels.py. This function waits for a GPU, to read the starts.
    """
    starts: list[int] = starts_M.tolist()
    if len(starts) == 1:
        tokens: slice | Tensor = slice(starts[0], starts[0] + num_tokens)
    else:
        tokens = starts_M.long().unsqueeze(1) + torch.arange(num_tokens, device=starts_M.device)

    def runs(x: Tensor) -> Tensor:
        return x[tokens].view(len(starts), num_tokens, *x.shape[1:])

    for x_THD, out in ((q_THD, q_out), (k_THD, k_out)):
        if x_THD is None or out is None:
            continue
        first, second = halves(runs(x_THD), layout)
        if angles is None:
            for half, to in zip((first, second), halves(out, "half"), strict=True):
                to.copy_(half)
        else:
            cos, sin = (runs(table).unsqueeze(-2).float() for table in angles)
            _rotate_halves((first.float(), second.float()), cos, sin, out)
    if v_THD is not None and v_out is not None:
        v_out.copy_(runs(v_THD))


def angle_between(start: tuple[Tensor, Tensor], end: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """(cos, sin) of the angles that rotate on from the angles `start` to the angles `end`, each a pair (cos, sin)."""
    (cos, sin), (end_cos, end_sin) = start, end
    return end_cos * cos + end_sin * sin, end_sin * cos - end_cos * sin


def pair_mean_square(q: Tensor) -> Tensor:
    """(q_c^2 + q_c'^2) / 2 of each half-layout pair, [..., D] -> float32 [..., D].

    Rotation does not change it, so q may be given before or after rotary embedding.
    """
    square = q.float().square()
    first, second = square.chunk(2, dim=-1)
    mean = (first + second) / 2
    return torch.cat([mean, mean], dim=-1)


def rotated_at(k_HnD: Tensor, rope: RopeTables | None, position: int, *, backwards: bool = False) -> Tensor:
    """Half-layout keys [H, n, D] rotated to consecutive positions from `position` on, or un-rotated if `backwards`.

    Without a rope, the keys themselves.
    """
    if rope is None:
        return k_HnD
    cos, sin = (table.to(k_HnD.device) for table in rope.tables(position, k_HnD.shape[1]))
    return unrotate(k_HnD, cos, sin) if backwards else rotate(k_HnD, cos, sin)


@dataclass(frozen=True)
class Arrival:
    """The form in which a model gives keys."""

    layout: str = "half"
    rotated_by: tuple[Tensor, Tensor] | None = None
    """(cos, sin) float32 [n, D/2], contiguous; None: keys arrive before rotary embedding."""

    def plain(self, k_nHD: Tensor) -> Tensor:
        """Keys [n, h, D] un-rotated, if they are rotated, and in half layout."""
        k = to_half_layout(k_nHD, self.layout)
        if self.rotated_by is None:
            return k
        return unrotate(k.float(), *(table.unsqueeze(1) for table in self.rotated_by))
