"""Names and sizes of token2-g64, hadamard2-g64, ...: one step size and zero point per token and group of channels."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from typing_extensions import override

from pagedvid.codecs.spec import F32_BYTES, CodecSpec, PageFormat
from pagedvid.errors import ConfigError

_NAME = re.compile(r"(?P<family>token|hadamard)(?P<bits>[248])-g(?P<group>16|32|64|128)")


@dataclass(frozen=True)
class TokenSpec(CodecSpec):
    """Integers with one step size per token and group of channels."""

    implementation: ClassVar[str] = "pagedvid.codecs.token.codec:make_codec"

    bits: int
    """Bits of a code."""
    has_step_sizes: bool = field(default=True, kw_only=True)
    group: int
    """Channels that share a token's step size."""
    is_hadamard: bool = False
    """Whether channels are rotated by a Hadamard matrix first."""

    @property
    @override
    def survives_fp8(self) -> bool:
        # 2 bits in groups of 64: 1.2 % more error at most, of 32: 1.5 %, of 16: 2.4 %. 4 bits in groups of 64: 32 %.
        return self.bits == 2 and self.group >= 32

    @override
    def page_tokens(self, page: PageFormat) -> int:
        if page.head_dim % self.group:
            raise ConfigError(f"{self.name} needs a head_dim that is a multiple of {self.group}; it is {page.head_dim}")
        return self._checked_page_tokens(page, page.num_bytes // self.token_bytes(page))

    def token_bytes(self, page: PageFormat) -> int:
        """Bytes of the codes, step sizes and zero points of one token."""
        return page.head_dim * self.bits // 8 + 4 * (page.head_dim // self.group)

    @override
    def encode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        # Values in float32, their codes in bytes, the packed codes; these joined with their numbers; and the records.
        padded = self._padded_values(page, num_heads, num_tokens)
        joined = padded * self.bits // 8 + 4 * padded // self.group
        joining = (F32_BYTES + 1) * padded + padded * self.bits // 8 + joined
        rotated = F32_BYTES * num_heads * page.head_dim * num_tokens if self.is_hadamard else 0
        # Low, high and divisor in float32; step size and zero point in fp16, twice.
        return rotated + joining + self._record_bytes(page, num_heads, num_tokens) + 20 * padded // self.group

    @override
    def decode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        padded = self._padded_values(page, num_heads, num_tokens)
        if self.is_hadamard:
            return F32_BYTES * (padded + num_heads * page.head_dim * num_tokens)
        return padded + 8 * padded // self.group


def read_token(name: str) -> TokenSpec | None:
    """The spec for a name; None for a name of another family."""
    if (match := _NAME.fullmatch(name)) is None:
        return None
    is_hadamard = match["family"] == "hadamard"
    return TokenSpec(name, int(match["bits"]), int(match["group"]), is_hadamard, stores_rotated=True)
