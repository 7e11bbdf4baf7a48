"""The interface of a codec: it encodes keys or values into page records and decodes them, on a GPU with its kernels.

    spec.py        sizes of a codec, known without a tensor
    base.py        encoding and decoding: the readable reference, and the entry points of the kernels
    registry.py    finds the spec for a name;  book.py makes each codec of a pool once

Axes: R rows, one per (chunk, KV head); H KV heads; n tokens; P pages; D head_dim; B bytes of a page.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.packing import FP16_MAX
from pagedvid.codecs.spec import CodecSpec, PageFormat
from pagedvid.errors import NonFiniteError
from pagedvid.rotary.axis_tables import AngleTables
from pagedvid.rotary.tables import Arrival, rotate

if TYPE_CHECKING:
    from pagedvid.codecs.channel.kernels.layout import PageLayout


class Codec(ABC):
    """Stores tokens in the pages of one pool."""

    page: PageFormat
    spec: CodecSpec
    axes: Tensor | None = None
    """float32 [D, D]: its rows are the directions along which step sizes are given; None: the channels."""

    @property
    def name(self) -> str:
        """The name of its spec."""
        return self.spec.name

    @cached_property
    def page_tokens(self) -> int:
        """Tokens of a full page."""
        return self.spec.page_tokens(self.page)

    @abstractmethod
    def encode(self, x_RnD: Tensor) -> Tensor:
        """Tokens -> records uint8 [R, P, B]. Raises NonFiniteError for NaN, infinity and values too large to store."""

    @abstractmethod
    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """Records -> tokens, written to `out` [R, padded_tokens, D], which is float32, bfloat16 or float16.

        Returns the view [R, num_tokens, D] of `out`; padding tokens are left untouched or set to finite values.
        """

    def mean_square_step_sizes(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        """Mean of step_size**2 over each row's `num_tokens` tokens from `first_token` on, along `axes`, float32 [R, D].

        None if the codec does not round to uniform grids.
        """
        return None

    def of_heads(self, heads: slice) -> Codec:
        """The codec for some of the KV heads: itself, unless it was made from tables."""
        return self

    def kernels(self, device: torch.device) -> PageKernels:
        """The kernels that read and write the pages on a GPU; by default the operations above, which are slower."""
        return CodecOperations(self, device)


def make_codec(spec: CodecSpec, page: PageFormat, tables: Any = None) -> Codec:
    """The codec of a spec, for the pages of one pool.

    `tables` are for the layer, for codecs that need them (see `CodecSpec.implementation`). Raises ConfigError.
    """
    spec.page_tokens(page)  # raises when no token fits
    module, _, function = spec.implementation.partition(":")
    codec: Codec = getattr(import_module(module), function)(page, spec, tables)
    return codec


class PageKernels(ABC):
    """Reads and writes the pages of one codec on a GPU, without waiting for the device.

    `records` is the pool, uint8 [num_pages, B]; `pages_HP` are page ids, int32.
    """

    axes: Tensor | None = None
    """`Codec.axes` on the device."""
    takes_arrivals: bool = False
    """Whether `encode` takes keys in the model's channel layout, rotated or not, described by an `Arrival`."""

    @abstractmethod
    def decode(
        self, records: Tensor, pages_HP: Tensor, out_nHD: Tensor, angles: AngleTables | None = None, frame_row: int = 0
    ) -> None:
        """Writes the tokens of the pages, in order, to `out_nHD`, D contiguous.

        `angles`: tables of the angles by which the tokens are rotated; `frame_row` is the row of their first frame.
        """

    @abstractmethod
    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> Tensor:
        """Writes tokens to the pages. `arrival`: how the model gives keys; they are un-rotated, in half layout.

        Returns flags uint8 [H, F]; any nonzero flag means that the head's values cannot be stored.
        """

    def mean_square_step_sizes(self, records: Tensor, pages_HP: Tensor, tokens: slice) -> Tensor | None:
        """Mean of step_size**2 over consecutive tokens along `axes`, float32 [H, D]; None: there are no step sizes."""
        return None

    @property
    def fused_layout(self) -> PageLayout | None:
        """The layout by which the fused attention kernel reads these pages; None: it cannot."""
        return None


class CodecOperations(PageKernels):
    """Pages that are read and written by PyTorch operations.

    Unlike kernels, `encode` waits for the device and raises NonFiniteError itself.
    """

    def __init__(self, codec: Codec, device: torch.device) -> None:
        self._codec = codec
        self.axes = None if codec.axes is None else codec.axes.to(device)

    @override
    def decode(
        self, records: Tensor, pages_HP: Tensor, out_nHD: Tensor, angles: AngleTables | None = None, frame_row: int = 0
    ) -> None:
        num_tokens = len(out_nHD)
        shape = (len(pages_HP), pages_HP.shape[1] * self._codec.page_tokens, out_nHD.shape[-1])
        buffer = torch.empty(shape, dtype=torch.float32, device=out_nHD.device)
        x_HnD = self._codec.decode(records[pages_HP.long()], num_tokens, buffer)
        if angles is not None:
            x_HnD = rotate(x_HnD, *angles.of_chunk(frame_row, num_tokens))
        out_nHD.copy_(x_HnD.transpose(0, 1))

    @override
    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> Tensor:
        records[pages_HP.long()] = self._codec.encode(x_nHD.transpose(0, 1).float())
        return torch.zeros(len(pages_HP), 1, dtype=torch.uint8, device=records.device)

    @override
    def mean_square_step_sizes(self, records: Tensor, pages_HP: Tensor, tokens: slice) -> Tensor | None:
        return self._codec.mean_square_step_sizes(records[pages_HP.long()], tokens.stop - tokens.start, tokens.start)


def saturated(x: Tensor) -> Tensor:
    """Clamps decoded float16 values to finite ones, in place; other dtypes are returned as they are.

    Rounding can take a code or a bfloat16 value just above the largest float16 number; wider dtypes hold every stored
    value.
    """
    return x.clamp_(-FP16_MAX, FP16_MAX) if x.dtype == torch.float16 else x


def not_storable(x_RnD: Tensor, limit: float) -> NonFiniteError:
    """An error that counts the values of `x` that are NaN, infinite or not below `limit`, and names their rows."""
    num_nan = int(torch.isnan(x_RnD).sum())
    num_infinite = int(torch.isinf(x_RnD).sum())
    storable = x_RnD.abs() < limit  # False for NaN too
    num_large = int((~storable).sum()) - num_nan - num_infinite
    rows = tuple(torch.nonzero(~storable.all(2).all(1)).flatten().tolist())
    return NonFiniteError(
        f"{num_nan} NaN, {num_infinite} infinite and {num_large} too large values (limit {limit:.4g})", rows
    )
