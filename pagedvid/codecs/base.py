"""What a codec is: one way in which keys or values become page records and come back.

    raw.py channel.py token.py hadamard.py klt.py     the codecs: the readable reference of every kernel
    book.py                                           finds the codec of a name

A codec belongs to a page format (codecs/page.py) and knows from its name how many tokens fill a page.

Axes: R rows, one per (chunk, KV head); n tokens; P pages; D head_dim; B bytes of a page.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from pagedvid.errors import NonFiniteError

FP16_MAX = 65504.0
"""What is stored as a step and a zero must lie below this: both are fp16."""


class Codec(Protocol):
    """One way to store tokens in pages."""

    @property
    def name(self) -> str:
        """Its name, see codecs/page.py."""
        ...

    @property
    def stores_rotated(self) -> bool:
        """Whether keys are stored after rotary embedding."""
        ...

    @property
    def axes(self) -> Tensor | None:
        """[D, D], whose rows are the directions that steps speak of; None when these are the channels."""
        ...

    def encode(self, x_RnD: Tensor) -> Tensor:
        """Tokens -> records uint8 [R, P, B]. Raises NonFiniteError for NaN, infinity, or what is too large to store."""
        ...

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """Records -> tokens, written into `out` [R, padded_tokens, D] in its dtype, float32, bfloat16 or float16.

        Returns its view [R, num_tokens, D]; what lies behind it is overwritten with something finite, or left.
        """
        ...

    def mean_square_steps(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        """Mean of step**2 over each row's `num_tokens` tokens from `first_token` on, along `axes`, float32 [R, D].

        None when nothing was rounded to a uniform grid.
        """
        ...


def saturated(x: Tensor) -> Tensor:
    """Decoded float16 values without infinities, in place: a code, or a bfloat16 number, that stands for the largest
    float16 number may be above it. Other types are left alone: nothing that is stored is beyond their range."""
    return x.clamp_(-FP16_MAX, FP16_MAX) if x.dtype == torch.float16 else x


def round_down_fp16(x: Tensor) -> Tensor:
    """The largest fp16 number that is not above `x`."""
    nearest = x.half()
    below = torch.nextafter(nearest, torch.full_like(nearest, -torch.inf))
    return torch.where(nearest.float() > x, below, nearest)


def round_up_fp16(x: Tensor) -> Tensor:
    """The smallest fp16 number that is not below `x`."""
    nearest = x.half()
    above = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    return torch.where(nearest.float() < x, above, nearest)


def not_storable(x_RnD: Tensor, limit: float) -> NonFiniteError:
    """The error that says what of `x` is NaN, infinite or not below `limit`, and in which rows."""
    num_nan = int(torch.isnan(x_RnD).sum())
    num_infinite = int(torch.isinf(x_RnD).sum())
    storable = x_RnD.abs() < limit  # False for NaN too
    num_large = int((~storable).sum()) - num_nan - num_infinite
    rows = tuple(torch.nonzero(~storable.all(2).all(1)).flatten().tolist())
    return NonFiniteError(
        f"{num_nan} NaN, {num_infinite} infinite and {num_large} too large values (limit {limit:.4g})", rows
    )
