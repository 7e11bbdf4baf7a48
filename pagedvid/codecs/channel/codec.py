"""Integer codecs, asymmetric min-max, with one step and one zero per channel, shared by the tokens of a page:

    code = round((x - zero) / step),   x' = zero + step * code,   |x' - x| <= step / 2

The zero is the page's minimum rounded *down* to fp16 and the step is rounded *up*, so that the bound holds for the
stored numbers, not only for the ideal ones. No range is clipped: clipping is harmful for video keys.

Axes: R rows, one per (chunk, KV head); n tokens; P pages; D head_dim; B bytes of a page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.codecs.base import FP16_MAX, not_storable, round_down_fp16
from pagedvid.codecs.channel.step_sizes import StepFormat
from pagedvid.codecs.packing import field_scale, fill_pages, join_record, pack, split_record, unpack_scaled
from pagedvid.codecs.page import PageFormat, read_codec
from pagedvid.errors import ConfigError


@dataclass(frozen=True)
class ChannelCodec:
    """Integers of 2, 4 or 8 bits with per-channel, per-page steps; options of the name as in codecs/page.py."""

    page: PageFormat
    name: str
    axes: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if read_codec(self.name).family != "channel":
            raise ConfigError(f"{self.name!r} is not a channel codec; these are int2, int4 and int8 with their options")

    @property
    def stores_rotated(self) -> bool:
        """See `Codec.stores_rotated`."""
        return read_codec(self.name).stores_rotated

    @cached_property
    def bits(self) -> int:
        """Of a code."""
        return int(read_codec(self.name).bits)

    @cached_property
    def page_tokens(self) -> int:
        """Tokens of a full page."""
        return self.page.page_tokens(self.name)

    @cached_property
    def _code_rows(self) -> int:
        return self.page.rows - read_codec(self.name).metadata_rows

    @cached_property
    def _steps(self) -> StepFormat:
        name = read_codec(self.name)
        return StepFormat(name.pair_steps, name.short_steps)

    def encode(self, x_RnD: Tensor) -> Tensor:
        """See `Codec.encode`. A channel that is constant on a page gets step 0 when fp16 holds it exactly."""
        x = fill_pages(x_RnD.float(), self.page_tokens)
        low, high = x.amin(2), x.amax(2)
        if not bool((low > -FP16_MAX).all() and (high < FP16_MAX).all()):
            raise not_storable(x_RnD, FP16_MAX)
        num_levels = (1 << self.bits) - 1
        zero = round_down_fp16(low)
        step_bytes = self._steps.encode((high - zero.float()) / num_levels)
        step = self._steps.decode(step_bytes).float()
        divisor = torch.where(step == 0, 1.0, step).unsqueeze(2)
        codes = x.sub_(zero.float().unsqueeze(2)).div_(divisor).round_().clamp_(0, num_levels).to(torch.uint8)
        return join_record(pack(codes, self.bits), step_bytes, zero)

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """See `Codec.decode`."""
        packed, step_bytes, zero = split_record(records_RPB, self._code_rows, self.page.head_dim)
        step = self._steps.decode(step_bytes).to(out.dtype)[:, :, None, None]
        fields = unpack_scaled(packed, self.bits)
        scaled_step = step * field_scale(self.bits, out.dtype, out.device)
        paged = out.view(*packed.shape[:2], *fields.shape[2:]).copy_(fields)
        torch.addcmul(zero.to(out.dtype)[:, :, None, None], paged, scaled_step, out=paged)
        return out[:, :num_tokens]

    def mean_square_steps(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        """See `Codec.mean_square_steps`; a page counts with as many of the tokens as it holds."""
        first_of_page = self.page_tokens * torch.arange(records_RPB.shape[1], dtype=torch.float64)
        begin = first_of_page.clamp(min=first_token)
        end = (first_of_page + self.page_tokens).clamp(max=first_token + num_tokens)
        weights = ((end - begin).clamp(min=0) / num_tokens).float().to(records_RPB.device)
        return torch.einsum("rpd,p->rd", self.page_steps(records_RPB).square(), weights)

    def page_steps(self, records_RPB: Tensor) -> Tensor:
        """The steps of every page, float32 [R, P, D]."""
        return self._steps.decode(split_record(records_RPB, self._code_rows, self.page.head_dim)[1]).float()
