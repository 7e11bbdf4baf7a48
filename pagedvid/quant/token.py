"""The quantizer of the paper: asymmetric min-max integers with one step and zero per token and group of channels.

Kept for comparison and for keys that only exist after rotary embedding, where channels have lost their structure.
(arXiv 2605.26266 counts 24 bits of metadata per group; step and zero are fp16 here, 32 bits.)

A record fills a page of 36 * D bytes with as many whole tokens as fit:

    | codes, n tokens x D channels | step fp16 [n, G] | zero fp16 [n, G] | unused, fewer bytes than one token |

Axes: R rows, one per (chunk, KV head); n tokens; P pages; D head_dim; G = D / group channel groups; B record bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.geometry import PAGE_ROWS
from pagedvid.quant.codec import FP16_MAX, not_storable, round_down_fp16, round_up_fp16
from pagedvid.quant.fields import pack_fields, unpack_fields


@dataclass(frozen=True)
class TokenCodec:
    """Per-token steps, shared by `group` consecutive channels."""

    head_dim: int
    bits: int = 2
    group: int = 64

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise ConfigError(f"bits is {self.bits}; allowed are 2, 4 and 8")
        if self.head_dim % self.group or self.group % 4:
            raise ConfigError(
                f"group is {self.group}; it must be a multiple of 4 and divide the head_dim {self.head_dim}"
            )

    @property
    def num_groups(self) -> int:
        """Channel groups of a token."""
        return self.head_dim // self.group

    @property
    def token_bytes(self) -> int:
        """Codes, steps and zeros of one token."""
        return self.head_dim * self.bits // 8 + 4 * self.num_groups

    @property
    def page_tokens(self) -> int:
        """Tokens in a page."""
        return PAGE_ROWS * self.head_dim // self.token_bytes

    def encode(self, x_RnD: Tensor) -> Tensor:
        """Tokens -> records uint8 [R, P, B]. Raises NonFiniteError for NaN, infinity, or what is too large for fp16."""
        x = _padded(x_RnD.float(), self.page_tokens).unflatten(-1, (self.num_groups, self.group))
        low, high = x.amin(-1), x.amax(-1)
        if not bool((low > -FP16_MAX).all() and (high < FP16_MAX).all()):
            raise not_storable(x_RnD, FP16_MAX)
        num_levels = (1 << self.bits) - 1
        zero = round_down_fp16(low)
        step = round_up_fp16((high - zero.float()) / num_levels)
        divisor = torch.where(step == 0, 1.0, step.float()).unsqueeze(-1)
        codes = ((x - zero.float().unsqueeze(-1)) / divisor).round_().clamp_(0, num_levels).to(torch.uint8)
        packed = pack_fields(codes.flatten(-3), self.bits)
        metadata = [part.flatten(-2).contiguous().view(torch.uint8) for part in (step, zero)]
        unused = PAGE_ROWS * self.head_dim - self.page_tokens * self.token_bytes
        return torch.nn.functional.pad(torch.cat([packed, *metadata], dim=-1), (0, unused))

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """Records -> tokens, written into `out` [R, P * page_tokens, D]; returns its view [R, num_tokens, D]."""
        packed, step, zero = self._split(records_RPB)
        codes = unpack_fields(packed, self.bits).unflatten(-1, (self.page_tokens, self.num_groups, self.group))
        values = codes * step.unsqueeze(-1) + zero.unsqueeze(-1)
        out.copy_(values.flatten(-2).flatten(1, 2))
        return out[:, :num_tokens]

    def variance_change(self, records_RPB: Tensor, num_tokens: int) -> Tensor:
        """Var k' - Var k by channel, float32 [R, D]: uniform rounding adds step^2 / 12. Mean over the tokens."""
        _, step, _ = self._split(records_RPB)
        mean_square = step.flatten(1, 2)[:, :num_tokens].square().mean(1)
        return (mean_square / 12).repeat_interleave(self.group, dim=-1)

    def _split(self, records_RPB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Code bytes [R, P, ...], float32 steps and zeros [R, P, page_tokens, G]."""
        code_bytes = self.page_tokens * self.head_dim * self.bits // 8
        numbers = records_RPB[..., code_bytes : self.page_tokens * self.token_bytes].contiguous().view(torch.float16)
        step, zero = numbers.float().unflatten(-1, (2, self.page_tokens, self.num_groups)).unbind(-3)
        return records_RPB[..., :code_bytes], step, zero


def _padded(x_RnD: Tensor, per_page: int) -> Tensor:
    """[R, P, per_page, D]; the last page is filled with the last token."""
    num_tokens = x_RnD.shape[1]
    padding = -num_tokens % per_page
    return torch.cat([x_RnD, x_RnD[:, -1:].expand(-1, padding, -1)], dim=1).unflatten(1, (-1, per_page))
