"""The interface of a codec: it encodes keys or values into page records and decodes them, on a GPU with its kernels.

    spec.py        sizes of a codec, known without a tensor
    base.py        encoding and decoding: the readable reference, and the entry points of the kernels
    registry.py    finds the spec for a name;  book.py makes each codec of a pool once

Axes: R rows, one per (chunk, KV head); S = E * J chunks, J for each of E ranges; H KV heads; n tokens; P pages of a
head; D head_dim; B bytes of a page.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import cache, cached_property, partial
from importlib import import_module
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.heads import HeadIndex
from pagedvid.codecs.packing import FLOAT8_MAX, FP16_MAX
from pagedvid.codecs.spec import CodecSpec, PageFormat
from pagedvid.errors import NonFiniteError
from pagedvid.rotary.angles import Angles
from pagedvid.rotary.tables import Arrival, rotate

CACHE_BYTES = 2**20
"""Decoded tokens that stay in the cache of a CPU until they are rotated."""


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

    @cached_property
    def padded_tokens(self) -> Callable[[int], int]:
        """Tokens that `decode` needs room for, by the number that it decodes."""
        return cache(partial(self.spec.padded_tokens, self.page))

    @abstractmethod
    def encode(self, x_RnD: Tensor) -> Tensor:
        """Tokens -> records uint8 [R, P, B]. Raises NonFiniteError for NaN, infinity and values too large to store."""

    @abstractmethod
    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """Records -> tokens, written to `out` [R, padded_tokens, D], which is float32, bfloat16 or float16.
        Its rows may have any stride; their tokens are contiguous.

        Returns the view [R, num_tokens, D] of `out`; padding tokens are left untouched or set to finite values.
        """

    def mean_square_step_sizes(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        """Mean of step_size**2 over each row's `num_tokens` tokens from `first_token` on, along `axes`, float32 [R, D].

        None if the codec does not round to uniform grids.
        """
        return None

    def of_heads(self, heads: Heads) -> Codec:
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

    `records` is the pool, uint8 [num_pages, B], contiguous. Page ids are int32 and contiguous, for S = E * J chunks of
    equal length, chunk e * J + j.
    """

    axes: Tensor | None = None
    """`Codec.axes` on the device."""
    takes_arrivals: bool = False
    """Whether `encode` takes keys in the model's channel layout, rotated or not, described by an `Arrival`."""

    @abstractmethod
    def decode(
        self,
        records: Tensor,
        pages_SHP: Tensor,
        num_tokens: int,
        out_EJnHD: Tensor,
        angles: Angles | None = None,
        inverse_scales_SH: Tensor | None = None,
        out_heads_H: Tensor | None = None,
    ) -> None:
        """Writes the `num_tokens` tokens of each chunk, in order, to `out_EJnHD`, which may have any strides with D
        innermost, and room for at least that many tokens.

        out: float32, bfloat16, float16 (saturated to finite values) or float8_e4m3fn (saturated to +-448). Beyond
        `num_tokens` it is left untouched or set to finite values.
        `angles`: by which keys are rotated. `inverse_scales_SH`: float32, contiguous; decoded and rotated values are
        multiplied by these before they are written in float8_e4m3fn, and only then.
        `out_heads_H`: which head of `out`, which may have more, each head is written to, int64; None: to all, in order.
        """

    def decode_heads(
        self,
        records: Tensor,
        pages_ShP: Tensor,
        num_tokens: int,
        out_EJnHD: Tensor,
        heads: HeadIndex,
        angles: Angles | None = None,
        inverse_scales_SH: Tensor | None = None,
    ) -> None:
        """`decode` into some heads of `out`. `inverse_scales_SH` are of all its heads."""
        scales_Sh = None if inverse_scales_SH is None else inverse_scales_SH[:, heads].contiguous()
        given = (records, pages_ShP, num_tokens)
        if isinstance(heads, slice):
            self.decode(*given, out_EJnHD[..., heads, :], angles, scales_Sh)
        else:
            self.decode(*given, out_EJnHD, angles, scales_Sh, heads)

    @abstractmethod
    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> Tensor | None:
        """Writes tokens to the pages. `arrival`: how the model gives keys; they are un-rotated, in half layout.

        Returns flags uint8 [H, F]; any nonzero flag means that the head's values cannot be stored. None: that has been
        checked already.
        """

    def mean_square_step_sizes(
        self, records: Tensor, pages_SHP: Tensor, num_tokens: int, first_token: int = 0
    ) -> Tensor | None:
        """Mean of step_size**2 over each chunk's `num_tokens` tokens from `first_token` on, along `axes`.

        float32 [S, H, D]; None: there are no step sizes.
        """
        return None


class CodecOperations(PageKernels):
    """Pages that are read and written by PyTorch operations: the path of CPUs, and the reference of all kernels.

    Values are decoded and rotated in the dtype of `out`; in float32 for float8. Unlike kernels, `encode` waits for the
    device and raises NonFiniteError itself.
    """

    def __init__(self, codec: Codec, device: torch.device) -> None:
        self._codec = codec
        self.axes = None if codec.axes is None else codec.axes.to(device)

    @override
    def decode(
        self,
        records: Tensor,
        pages_SHP: Tensor,
        num_tokens: int,
        out_EJnHD: Tensor,
        angles: Angles | None = None,
        inverse_scales_SH: Tensor | None = None,
        out_heads_H: Tensor | None = None,
    ) -> None:
        is_float8 = out_EJnHD.dtype == torch.float8_e4m3fn
        dtype = torch.float32 if is_float8 else out_EJnHD.dtype
        padded_tokens, head_dim = self._codec.padded_tokens(num_tokens), out_EJnHD.shape[-1]
        pages_EJHP, cos_sin, scales_EJH11 = _by_range(out_EJnHD, pages_SHP, angles, inverse_scales_SH, dtype)
        for part in _parts(pages_EJHP, padded_tokens * head_dim * dtype.itemsize):
            out, pages = out_EJnHD[part], pages_EJHP[part]
            target = None if is_float8 or out_heads_H is not None else out[:, :, :num_tokens].transpose(2, 3)
            rows_RnD = None if target is None or cos_sin is not None else _as_rows(out, padded_tokens)
            if rows_RnD is None:
                shape = (pages.shape[:-1].numel(), padded_tokens, head_dim)
                buffer = torch.empty(shape, dtype=dtype, device=out.device)
            else:
                buffer = rows_RnD
            x_RnD = saturated(self._codec.decode(_read(records, pages), num_tokens, buffer))
            x = x_RnD.view(*pages.shape[:-1], num_tokens, head_dim)
            if cos_sin is not None:
                x = saturated(rotate(x, cos_sin[0][part], cos_sin[1][part], out=target))
            if is_float8:
                x = x if scales_EJH11 is None else x.mul_(scales_EJH11[part])
                x = x.clamp_(-FLOAT8_MAX, FLOAT8_MAX)
            if target is None or (cos_sin is None and rows_RnD is None):
                _write(x, out, out_heads_H)

    @override
    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> None:
        encoded_HPB = self._codec.encode(x_nHD.transpose(0, 1).float())
        records.index_copy_(0, pages_HP.flatten().long(), encoded_HPB.flatten(0, 1))

    @override
    def mean_square_step_sizes(
        self, records: Tensor, pages_SHP: Tensor, num_tokens: int, first_token: int = 0
    ) -> Tensor | None:
        mean_RD = self._codec.mean_square_step_sizes(_read(records, pages_SHP), num_tokens, first_token)
        return None if mean_RD is None else mean_RD.unflatten(0, pages_SHP.shape[:2])


def _read(records: Tensor, pages: Tensor) -> Tensor:
    """Copies of pages [..., P], uint8 [rows, P, B]."""
    rows = pages.flatten(0, -2)
    return records.index_select(0, rows.flatten()).view(*rows.shape, records.shape[1])


def _write(x_EJHnD: Tensor, out_EJnHD: Tensor, out_heads_H: Tensor | None) -> None:
    """Writes tokens to their heads of `out`; see `PageKernels.decode`."""
    tokens = out_EJnHD[:, :, : x_EJHnD.shape[3]].transpose(2, 3)
    if out_heads_H is None:
        tokens.copy_(x_EJHnD)
    elif tokens.dtype == torch.float8_e4m3fn:  # which PyTorch cannot copy by an index
        tokens.view(torch.uint8).index_copy_(2, out_heads_H, x_EJHnD.to(tokens.dtype).view(torch.uint8))
    else:
        tokens.index_copy_(2, out_heads_H, x_EJHnD)


def _by_range(
    out_EJnHD: Tensor, pages_SHP: Tensor, angles: Angles | None, inverse_scales_SH: Tensor | None, dtype: torch.dtype
) -> tuple[Tensor, tuple[Tensor, Tensor] | None, Tensor | None]:
    """(pages [E, J, H, P], (cos, sin) [E, J, 1, n, D/2] in `dtype`, inverse scales [E, J, H, 1, 1]), as views."""
    chunks = out_EJnHD.shape[:2]
    cos_sin = None
    if angles is not None:
        cos, sin = (table.to(dtype).unflatten(0, chunks).unsqueeze(2) for table in angles.of_all)
        cos_sin = cos, sin
    scales = None if inverse_scales_SH is None else inverse_scales_SH.unflatten(0, chunks)[..., None, None]
    return pages_SHP.unflatten(0, chunks), cos_sin, scales


def _parts(pages_EJHP: Tensor, row_bytes: int) -> Iterator[tuple[slice, slice]]:
    """Which ranges and which of their chunks are decoded together: few enough for the cache of a CPU, or all."""
    num_ranges, num_chunks, num_heads, _ = pages_EJHP.shape
    at_once = num_ranges * num_chunks
    if pages_EJHP.device.type == "cpu":
        at_once = max(1, CACHE_BYTES // (num_heads * row_bytes))
    ranges, chunks = max(1, at_once // num_chunks), min(at_once, num_chunks)
    for range_ in range(0, num_ranges, ranges):
        for chunk in range(0, num_chunks, chunks):
            yield slice(range_, range_ + ranges), slice(chunk, chunk + chunks)


def _as_rows(out_EJnHD: Tensor, padded_tokens: int) -> Tensor | None:
    """`out` viewed as [E * J * H, padded_tokens, D]; None without room for the padding, or if its strides forbid it."""
    if out_EJnHD.shape[2] < padded_tokens:
        return None
    rows = out_EJnHD[:, :, :padded_tokens].transpose(2, 3)
    try:
        return rows.view(-1, *rows.shape[3:])
    except RuntimeError:  # the strides of E, J and H do not follow from one another
        return None


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
