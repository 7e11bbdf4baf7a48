"""Names and sizes of int2, int4 and int8: one step size and one zero point per channel and page."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import ClassVar

from typing_extensions import override

from pagedvid.codecs.spec import F32_BYTES, CodecSpec, PageFormat

CHANNEL_LADDER = ("mean", "int2", "int4", "int8")
"""Rungs for models without tables of klt codecs: 0, 1, 2 and 4 pages of 36 rows for 128 tokens."""
_NAME = re.compile(r"int(?P<bits>[248])(?P<pair>-pair)?(?P<s8>-s8)?(?P<post>-post)?")


@dataclass(frozen=True)
class ChannelSpec(CodecSpec):
    """Integers with one step size per channel and page."""

    implementation: ClassVar[str] = "pagedvid.codecs.channel.codec:make_codec"

    bits: int
    """Bits of a code."""
    has_step_sizes: bool = field(default=True, kw_only=True)
    by_pair: bool = False
    """Whether the two channels of a rotary pair share their step size."""
    is_short: bool = False
    """Whether step sizes take 8 bits instead of 16."""

    @property
    def metadata_rows(self) -> int:
        """Rows of step sizes and zero points in a page."""
        step_size_half_rows = (1 if self.is_short else 2) * (1 if self.by_pair else 2)
        return 2 + -(-step_size_half_rows // 2)

    @property
    @override
    def survives_fp8(self) -> bool:
        # int2-pair and int2-pair-s8: 1.4 % more error at most. int2 and int2-post: 1.8 and 1.0 % on the demo model, but
        # 3.1 and 2.7 % on keys with heavy tails. int4: 62 %.
        return self.bits == 2 and self.by_pair and not self.stores_rotated

    @override
    def page_tokens(self, page: PageFormat) -> int:
        return self._checked_page_tokens(page, (page.rows - self.metadata_rows) * 8 // self.bits)

    @override
    def encode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        # Values in float32, their codes in bytes, the packed codes, and the records, into which these are copied.
        padded = self._padded_values(page, num_heads, num_tokens)
        joining = (F32_BYTES + 1) * padded + padded * self.bits // 8 + self._record_bytes(page, num_heads, num_tokens)
        # Low, high, step size and divisor in float32, zero point and step size in fp16.
        return joining + 20 * num_heads * self.num_pages(page, num_tokens) * page.head_dim

    @override
    def decode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        # Codes in bytes; step size, zero point, and the step size of every bit field in float32.
        numbers = F32_BYTES * (2 + 8 // self.bits) * self.num_pages(page, num_tokens) * num_heads
        return self._padded_values(page, num_heads, num_tokens) + numbers * page.head_dim


def read_channel(name: str) -> ChannelSpec | None:
    """The spec for a name; None for a name of another family."""
    if (match := _NAME.fullmatch(name)) is None:
        return None
    pair, short, post = (match[option] is not None for option in ("pair", "s8", "post"))
    return ChannelSpec(name, int(match["bits"]), pair, short, stores_rotated=post)
