"""The quantizer of the paper: asymmetric min-max integers with one step and one zero per token and group of channels.

Made for keys that only exist after rotary embedding, where channels have lost their structure.
(arXiv 2605.26266 counts 24 bits of metadata per group; step and zero are fp16 here, 32 bits.)

A page holds as many whole tokens as fit:

    | codes, n tokens x D channels | step fp16 [n, G] | zero fp16 [n, G] | unused, fewer bytes than one token |

With the page's n * D codes in C bytes, byte r holds codes r, r + C, r + 2C, ..., the first in the lowest bits: the
layout of codecs/packing.py for a single channel.

Axes: R rows, one per (chunk, KV head); n tokens; P pages; D head_dim; G channel groups; B bytes of a page.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.codecs.base import FP16_MAX, not_storable, round_down_fp16, round_up_fp16
from pagedvid.codecs.packing import field_scale, fill_pages, pack, unpack_scaled
from pagedvid.codecs.page import PageFormat, read_codec
from pagedvid.errors import ConfigError


@dataclass(frozen=True)
class TokenCodec:
    """Integers of 2, 4 or 8 bits with steps per token, shared by a group of consecutive channels."""

    page: PageFormat
    name: str
    axes: Tensor | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if read_codec(self.name).family not in ("token", "hadamard"):
            raise ConfigError(f"{self.name!r} is not a codec of tokens; these are called like token2-g64")

    @property
    def stores_rotated(self) -> bool:
        """True: keys are stored after rotary embedding."""
        return True

    @cached_property
    def bits(self) -> int:
        """Of a code."""
        return int(read_codec(self.name).bits)

    @cached_property
    def num_groups(self) -> int:
        """Channel groups of a token."""
        return self.page.head_dim // read_codec(self.name).group

    @cached_property
    def page_tokens(self) -> int:
        """Tokens of a full page."""
        return self.page.page_tokens(self.name)

    @cached_property
    def _code_bytes(self) -> int:
        return self.page_tokens * self.page.head_dim * self.bits // 8

    def encode(self, x_RnD: Tensor) -> Tensor:
        """See `Codec.encode`."""
        x = fill_pages(x_RnD.float(), self.page_tokens).unflatten(-1, (self.num_groups, -1))
        low, high = x.amin(-1), x.amax(-1)
        if not bool((low > -FP16_MAX).all() and (high < FP16_MAX).all()):
            raise not_storable(x_RnD, FP16_MAX)
        num_levels = (1 << self.bits) - 1
        zero = round_down_fp16(low)
        step = round_up_fp16((high - zero.float()) / num_levels)
        divisor = torch.where(step == 0, 1.0, step.float()).unsqueeze(-1)
        codes = x.sub_(zero.float().unsqueeze(-1)).div_(divisor).round_().clamp_(0, num_levels).to(torch.uint8)
        packed = pack(codes.flatten(2).unsqueeze(-1), self.bits).squeeze(-1)
        numbers = torch.cat([step.flatten(2), zero.flatten(2)], dim=-1).view(torch.uint8)
        unused = self.page.num_bytes - packed.shape[-1] - numbers.shape[-1]
        return torch.nn.functional.pad(torch.cat([packed, numbers], dim=-1), (0, unused))

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """See `Codec.decode`. Computed in float32, which is faster here, and rounded once."""
        values = out if out.dtype == torch.float32 else torch.empty(out.shape, dtype=torch.float32, device=out.device)
        fields = unpack_scaled(records_RPB[..., : self._code_bytes].unsqueeze(-1), self.bits).squeeze(-1)
        values.view(fields.shape).copy_(fields).mul_(field_scale(self.bits, values.dtype, out.device)[..., 0])
        step, zero = self._numbers(records_RPB).float().unsqueeze(-1).unbind(2)
        values.view(*step.shape[:-1], -1).mul_(step).add_(zero)
        return (out if values is out else out.copy_(values))[:, :num_tokens]

    def mean_square_steps(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        """See `Codec.mean_square_steps`."""
        steps = self.per_token_steps(records_RPB, first_token + num_tokens)[:, first_token:]
        return steps.square().mean(1).repeat_interleave(read_codec(self.name).group, dim=-1)

    def per_token_steps(self, records_RPB: Tensor, num_tokens: int) -> Tensor:
        """The step of every token and group, float32 [R, n, G]."""
        return self._numbers(records_RPB)[:, :, 0].flatten(1, 2)[:, :num_tokens].float()

    def _numbers(self, records_RPB: Tensor) -> Tensor:
        """Steps and zeros, an fp16 view [R, P, 2, page_tokens, G]."""
        num_bytes = 4 * self.page_tokens * self.num_groups
        numbers = records_RPB[..., self._code_bytes : self._code_bytes + num_bytes].view(torch.float16)
        return numbers.unflatten(-1, (2, self.page_tokens, self.num_groups))
