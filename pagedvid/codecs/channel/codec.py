"""Integer codecs, asymmetric min-max, with one step size and one zero point per channel, shared by a page's tokens:

    code = round((x - zero_point) / step_size),   x' = zero_point + step_size * code,   |x' - x| <= step_size / 2

The zero point is the page's minimum rounded *down* to fp16 and the step size is rounded *up*, so that the bound holds
for the stored numbers, not only for the exact ones. No range is clipped: clipping harms the keys of video models.

A record is the page's rows of D bytes:

    | C rows of codes ..................................... | step sizes, 1 or 2 rows | zero points fp16 [D], 2 rows |

with 32 rows of codes in a page of 36 rows; options that shorten the step sizes (`StepSizeFormat`) make room for one
more row. How codes share bytes: packing.py, with a row for each token and a column for each channel.

Axes: R rows, one per (chunk, KV head); n tokens; P pages; D head_dim; B bytes of a page; C rows of codes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.base import Codec, PageKernels, not_storable
from pagedvid.codecs.channel.spec import ChannelSpec
from pagedvid.codecs.packing import (
    FP16_MAX,
    field_masks,
    field_scale,
    fill_pages,
    pack,
    round_down_fp16,
    round_up_fp16,
    short_step_sizes,
)
from pagedvid.codecs.spec import PageFormat

ZERO_POINT_ROWS = 2


@dataclass(frozen=True)
class ChannelCodec(Codec):
    """Integers of 2, 4 or 8 bits with one step size per channel and page."""

    page: PageFormat
    spec: ChannelSpec

    @cached_property
    def _code_rows(self) -> int:
        return self.page.rows - self.spec.metadata_rows

    @cached_property
    def _step_sizes(self) -> StepSizeFormat:
        return StepSizeFormat(self.spec.by_pair, self.spec.is_short)

    @override
    def encode(self, x_RnD: Tensor) -> Tensor:
        x = fill_pages(x_RnD.float(), self.page_tokens)
        low, high = x.amin(2), x.amax(2)
        if not bool((low > -FP16_MAX).all() and (high < FP16_MAX).all()):
            raise not_storable(x_RnD, FP16_MAX)
        num_levels = (1 << self.spec.bits) - 1
        zero_point = round_down_fp16(low)
        # A channel that is constant on a page gets step size 0 when fp16 holds its value exactly.
        step_size_bytes = self._step_sizes.encode((high - zero_point.float()) / num_levels)
        step_size = self._step_sizes.decode(step_size_bytes).float()
        divisor = torch.where(step_size == 0, 1.0, step_size).unsqueeze(2)
        codes = x.sub_(zero_point.float().unsqueeze(2)).div_(divisor).round_().clamp_(0, num_levels).to(torch.uint8)
        return join_record(pack(codes, self.spec.bits), step_size_bytes, zero_point)

    @override
    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        packed, step_size_bytes, zero_point = split_record(records_RPB, self._code_rows, self.page.head_dim)
        step_size = self._step_sizes.decode(step_size_bytes).to(out.dtype)[:, :, None, None]
        fields = packed.unsqueeze(-3) & field_masks(self.spec.bits, packed.device)
        scaled_step_size = step_size * field_scale(self.spec.bits, out.dtype, out.device)
        paged = out.view(*packed.shape[:2], *fields.shape[2:]).copy_(fields)
        torch.addcmul(zero_point.to(out.dtype)[:, :, None, None], paged, scaled_step_size, out=paged)
        return out[:, :num_tokens]

    @override
    def mean_square_step_sizes(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        # Each page is weighted by how many of the tokens it holds.
        first_of_page = self.page_tokens * torch.arange(records_RPB.shape[1], dtype=torch.float64)
        begin = first_of_page.clamp(min=first_token)
        end = (first_of_page + self.page_tokens).clamp(max=first_token + num_tokens)
        weights = ((end - begin).clamp(min=0) / num_tokens).float().to(records_RPB.device)
        return torch.einsum("rpd,p->rd", self.page_step_sizes(records_RPB).square(), weights)

    @override
    def kernels(self, device: torch.device) -> PageKernels:
        from pagedvid.codecs.channel.kernels.layout import PageLayout, unsupported_reasons
        from pagedvid.codecs.channel.kernels.pages import ChannelKernels

        if unsupported_reasons(self.page):
            return super().kernels(device)
        return ChannelKernels(PageLayout.of_channels(self.page, self.spec))

    def page_step_sizes(self, records_RPB: Tensor) -> Tensor:
        """The step sizes of every page, float32 [R, P, D]."""
        return self._step_sizes.decode(split_record(records_RPB, self._code_rows, self.page.head_dim)[1]).float()


@dataclass(frozen=True)
class StepSizeFormat:
    """How a page stores the step sizes of its channels: whole rows of D bytes.

                      16 bits: fp16                      8 bits (step_sizes.py)
        by channel    2 rows                             1 row
        by pair       1 row; channels c and c + D/2,     1 row, the second half of it zero bytes
                      a rotary pair, share the larger

    Step sizes are rounded up, so that half a stored step size bounds the rounding error.
    """

    by_pair: bool = False
    is_short: bool = False

    def encode(self, step_size: Tensor) -> Tensor:
        """Step sizes float32 [..., D] -> bytes uint8 [..., S * D], which decode to step sizes at least as large."""
        head_dim = step_size.shape[-1]
        if self.by_pair:
            step_size = torch.maximum(*step_size.chunk(2, dim=-1))
        if not self.is_short:
            return round_up_fp16(step_size).contiguous().view(torch.uint8)
        short = torch.searchsorted(short_step_sizes(step_size.device), step_size.contiguous()).to(torch.uint8)
        return torch.nn.functional.pad(short, (0, head_dim - short.shape[-1]))

    def decode(self, step_size_bytes: Tensor) -> Tensor:
        """Bytes uint8 [..., S * D] -> step sizes [..., D], fp16, or float32 if short."""
        if self.is_short:
            used = step_size_bytes[..., : step_size_bytes.shape[-1] // 2] if self.by_pair else step_size_bytes
            step_size = short_step_sizes(step_size_bytes.device)[used.int()]
        else:
            step_size = step_size_bytes.view(torch.float16)
        return torch.cat([step_size, step_size], dim=-1) if self.by_pair else step_size


def join_record(packed: Tensor, step_size_bytes: Tensor, zero_point: Tensor) -> Tensor:
    """Code bytes [..., C, D], rows of step size bytes [..., S * D], fp16 zero points [..., D] -> records uint8."""
    return torch.cat([packed.flatten(-2), step_size_bytes, zero_point.contiguous().view(torch.uint8)], dim=-1)


def split_record(records: Tensor, code_rows: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Records uint8 [..., B] as views: codes [..., C, D], step size bytes [..., S * D], zero points fp16 [..., D]."""
    first_step_size, first_zero_point = code_rows * head_dim, records.shape[-1] - ZERO_POINT_ROWS * head_dim
    packed = records[..., :first_step_size].unflatten(-1, (code_rows, head_dim))
    return packed, records[..., first_step_size:first_zero_point], records[..., first_zero_point:].view(torch.float16)


def make_codec(page: PageFormat, spec: ChannelSpec, tables: None) -> ChannelCodec:
    """The codec of a spec; the `CodecSpec.implementation` of `ChannelSpec`."""
    return ChannelCodec(page, spec)
