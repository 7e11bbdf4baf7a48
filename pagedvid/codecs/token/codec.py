"""The quantizer of arXiv 2605.26266: asymmetric min-max integers with one step size and one zero point per token and
group of channels.

For keys that exist only after rotary embedding, when channels have lost their structure. The paper counts 24 bits of
metadata per group; here step size and zero point are fp16, 32 bits.

A page holds as many whole tokens as fit:

    | codes, n tokens x D channels | step sizes fp16 [n, G] | zero points fp16 [n, G] | unused, less than one token |

With the page's n * D codes in C bytes, byte r holds codes r, r + C, r + 2C, ..., the first in the lowest bits: the
layout of packing.py for a single column.

Axes: R rows, one per (chunk, KV head); n tokens; P pages; D head_dim; G channel groups; B bytes of a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.base import Codec, PageKernels, not_storable
from pagedvid.codecs.packing import (
    FP16_MAX,
    field_masks,
    field_scale,
    fill_pages,
    pack,
    round_down_fp16,
    round_up_fp16,
)
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.token.hadamard import matrix_on
from pagedvid.codecs.token.spec import TokenSpec


@dataclass(frozen=True)
class TokenCodec(Codec):
    """Integers of 2, 4 or 8 bits with one step size per token and group of consecutive channels."""

    page: PageFormat
    spec: TokenSpec

    @cached_property
    def num_groups(self) -> int:
        """Channel groups of a token."""
        return self.page.head_dim // self.spec.group

    @cached_property
    def _code_bytes(self) -> int:
        return self.page_tokens * self.page.head_dim * self.spec.bits // 8

    @override
    def encode(self, x_RnD: Tensor) -> Tensor:
        x = fill_pages(x_RnD.float(), self.page_tokens).unflatten(-1, (self.num_groups, -1))
        low, high = x.amin(-1), x.amax(-1)
        if not bool((low > -FP16_MAX).all() and (high < FP16_MAX).all()):
            raise not_storable(x_RnD, FP16_MAX)
        num_levels = (1 << self.spec.bits) - 1
        zero_point = round_down_fp16(low)
        step_size = round_up_fp16((high - zero_point.float()) / num_levels)
        divisor = torch.where(step_size == 0, 1.0, step_size.float()).unsqueeze(-1)
        codes = x.sub_(zero_point.float().unsqueeze(-1)).div_(divisor).round_().clamp_(0, num_levels).to(torch.uint8)
        packed = pack(codes.flatten(2).unsqueeze(-1), self.spec.bits).squeeze(-1)
        numbers = torch.cat([step_size.flatten(2), zero_point.flatten(2)], dim=-1).view(torch.uint8)
        unused = self.page.num_bytes - packed.shape[-1] - numbers.shape[-1]
        return torch.nn.functional.pad(torch.cat([packed, numbers], dim=-1), (0, unused))

    @override
    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        # In float32, which is faster here and rounds only once.
        values = out if out.dtype == torch.float32 else torch.empty(out.shape, dtype=torch.float32, device=out.device)
        packed = records_RPB[..., : self._code_bytes].unsqueeze(-2)
        fields = packed & field_masks(self.spec.bits, packed.device).squeeze(-1)
        values.view(fields.shape).copy_(fields).mul_(field_scale(self.spec.bits, values.dtype, out.device)[..., 0])
        step_size, zero_point = self._numbers(records_RPB).float().unsqueeze(-1).unbind(2)
        values.view(*step_size.shape[:-1], -1).mul_(step_size).add_(zero_point)
        return (out if values is out else out.copy_(values))[:, :num_tokens]

    @override
    def mean_square_step_sizes(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        step_sizes = self.token_step_sizes(records_RPB, first_token + num_tokens)[:, first_token:]
        return step_sizes.square().mean(1).repeat_interleave(self.spec.group, dim=-1)

    def token_step_sizes(self, records_RPB: Tensor, num_tokens: int) -> Tensor:
        """The step size of every token and group, float32 [R, n, G]."""
        return self._numbers(records_RPB)[:, :, 0].flatten(1, 2)[:, :num_tokens].float()

    def _numbers(self, records_RPB: Tensor) -> Tensor:
        """Step sizes and zero points, an fp16 view [R, P, 2, page_tokens, G]."""
        num_bytes = 4 * self.page_tokens * self.num_groups
        numbers = records_RPB[..., self._code_bytes : self._code_bytes + num_bytes].view(torch.float16)
        return numbers.unflatten(-1, (2, self.page_tokens, self.num_groups))

    @override
    def kernels(self, device: torch.device) -> PageKernels:
        from pagedvid.codecs.token.kernels.layout import TokenLayout
        from pagedvid.codecs.token.kernels.pages import TokenKernels
        from pagedvid.codecs.triton_common import head_dim_reasons

        if head_dim_reasons(self.page.head_dim):
            return super().kernels(device)
        return TokenKernels(TokenLayout.of(self.page, self.spec, device))


@dataclass(frozen=True)
class HadamardCodec(TokenCodec):
    """`TokenCodec` for channels that are rotated by a Hadamard matrix first (hadamard.py)."""

    @cached_property
    def axes(self) -> Tensor:  # type: ignore[override]
        """The Hadamard matrix: its rows are the directions of the rotated channels."""
        return matrix_on(torch.device("cpu"), self.page.head_dim)

    @override
    def encode(self, x_RnD: Tensor) -> Tensor:
        if not bool(torch.isfinite(x_RnD).all()):  # after rotation, one NaN would be counted as a whole token of them
            raise not_storable(x_RnD, FP16_MAX)
        return super().encode(x_RnD.float() @ matrix_on(x_RnD.device, self.page.head_dim))

    @override
    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        rotated = super().decode(
            records_RPB, num_tokens, torch.empty(out.shape, dtype=torch.float32, device=out.device)
        )
        return out[:, :num_tokens].copy_(rotated @ matrix_on(out.device, self.page.head_dim))


def make_codec(page: PageFormat, spec: TokenSpec, tables: None) -> TokenCodec:
    """The codec of a spec; the `CodecSpec.implementation` of `TokenSpec`."""
    return HadamardCodec(page, spec) if spec.is_hadamard else TokenCodec(page, spec)
