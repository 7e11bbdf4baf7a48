"""Codecs: how keys or values become page records and come back. This is the readable reference of every kernel.

Integer codecs are asymmetric min-max with one step and one zero per channel, shared by the tokens of a page:

    code = round((x - zero) / step),   x' = zero + step * code,   |x' - x| <= step / 2

The zero is the page's minimum rounded *down* to fp16 and the step is rounded *up*, so that the bound holds for the
stored fp16 numbers, not only for the ideal ones. No range is clipped: clipping is harmful for video keys.

Axes: R rows, one per (chunk, KV head); n tokens; P pages; D head_dim; B = 36 * D record bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pagedvid.errors import ConfigError, NonFiniteError
from pagedvid.geometry import BITS_PER_VALUE, PAGE_ROWS, is_quantized, page_tokens, pages_for_tokens
from pagedvid.quant.pages import field_scale, join_record, pack, split_record, unpack_scaled

FP16_MAX = 65504.0
"""Minimum and maximum of a channel must lie below this: steps and zeros are fp16."""


class Codec(Protocol):
    """One way to store tokens in pages."""

    @property
    def name(self) -> str:
        """Its name in `CODECS` and in geometry.py."""
        ...

    def encode(self, x_RnD: Tensor) -> Tensor:
        """Tokens -> records uint8 [R, P, B]. Raises NonFiniteError for NaN, infinity, or what is too large to store."""
        ...

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """Records -> tokens, written into `out` [R, P * page_tokens, D]; returns its view [R, num_tokens, D]."""
        ...

    def mean_square_steps(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        """Mean of step**2 over each row's `num_tokens` tokens from `first_token` on, float32 [R, D].

        None when nothing was rounded to a grid.
        """
        ...


@dataclass(frozen=True)
class RawCodec:
    """Values kept as they are in a float type: no steps, never corrected. Uses the metadata rows for tokens too."""

    name: str
    dtype: torch.dtype

    def encode(self, x_RnD: Tensor) -> Tensor:
        """See `Codec.encode`."""
        stored = x_RnD.to(self.dtype)
        if not bool(torch.isfinite(stored).all()):
            raise not_storable(x_RnD, torch.finfo(self.dtype).max)
        num_rows, num_tokens, head_dim = x_RnD.shape
        num_pages = pages_for_tokens(num_tokens, self.name)
        records = torch.zeros(num_rows, num_pages, PAGE_ROWS * head_dim, dtype=torch.uint8, device=x_RnD.device)
        self._values(records)[:, :num_tokens] = stored
        return records

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """See `Codec.decode`."""
        tokens = out[:, :num_tokens]
        tokens.copy_(self._values(records_RPB)[:, :num_tokens])
        return tokens

    def mean_square_steps(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        """None: there is no step."""
        return None

    def _values(self, records_RPB: Tensor) -> Tensor:
        """The records seen as [R, P * page_tokens, D] numbers (a view; rows of D fill a page exactly)."""
        head_dim = records_RPB.shape[-1] // PAGE_ROWS
        return records_RPB.view(self.dtype).unflatten(-1, (-1, head_dim)).flatten(1, 2)


@dataclass(frozen=True)
class ChannelCodec:
    """Asymmetric min-max integers of 2, 4 or 8 bits with per-channel, per-page steps."""

    name: str
    bits: int

    def encode(self, x_RnD: Tensor) -> Tensor:
        """See `Codec.encode`. A channel that is constant on a page gets step 0 when fp16 holds it exactly."""
        x = self._pad_to_pages(x_RnD.float())
        low, high = x.amin(2), x.amax(2)
        if not bool((low > -FP16_MAX).all() and (high < FP16_MAX).all()):
            raise not_storable(x_RnD, FP16_MAX)
        num_levels = (1 << self.bits) - 1
        zero = round_down_fp16(low)
        step = round_up_fp16((high - zero.float()) / num_levels)
        divisor = torch.where(step == 0, 1.0, step.float()).unsqueeze(2)
        codes = x.sub_(zero.float().unsqueeze(2)).div_(divisor).round_().clamp_(0, num_levels).to(torch.uint8)
        return join_record(pack(codes, self.bits), step, zero)

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """See `Codec.decode`."""
        packed, step, zero = split_record(records_RPB)
        fields = unpack_scaled(packed, self.bits)
        scaled_step = step.to(out.dtype)[:, :, None, None] * field_scale(self.bits, out.dtype, out.device)
        paged = out.view(*packed.shape[:2], *fields.shape[2:]).copy_(fields)
        torch.addcmul(zero.to(out.dtype)[:, :, None, None], paged, scaled_step, out=paged)
        return out[:, :num_tokens]

    def mean_square_steps(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        """See `Codec.mean_square_steps`; a page counts with as many of the tokens as it holds."""
        _, step, _ = split_record(records_RPB)
        first_of_page = page_tokens(self.name) * torch.arange(records_RPB.shape[1], dtype=torch.float64)
        begin = first_of_page.clamp(min=first_token)
        end = (first_of_page + page_tokens(self.name)).clamp(max=first_token + num_tokens)
        weights = ((end - begin).clamp(min=0) / num_tokens).float().to(records_RPB.device)
        return torch.einsum("rpd,p->rd", step.float().square(), weights)

    def _pad_to_pages(self, x_RnD: Tensor) -> Tensor:
        """[R, P, page_tokens, D]; the last page is filled with its last token, which moves neither min nor max."""
        num_tokens, per_page = x_RnD.shape[1], page_tokens(self.name)
        padding = pages_for_tokens(num_tokens, self.name) * per_page - num_tokens
        filled = torch.cat([x_RnD, x_RnD[:, -1:].expand(-1, padding, -1)], dim=1)
        return filled.unflatten(1, (-1, per_page))


CODECS: dict[str, Codec] = {
    "fp32": RawCodec("fp32", torch.float32),
    "bf16": RawCodec("bf16", torch.bfloat16),
    **{name: ChannelCodec(name, bits) for name, bits in BITS_PER_VALUE.items() if is_quantized(name)},
}


def get_codec(name: str) -> Codec:
    """The codec of that name. Raises ConfigError listing the known ones."""
    if name not in CODECS:
        raise ConfigError(f"unknown codec {name!r}; allowed are {', '.join(CODECS)}")
    return CODECS[name]


def page_steps(records_RPB: Tensor) -> Tensor:
    """The step sizes of quantized records, float32 [R, P, D]."""
    return split_record(records_RPB)[1].float()


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
