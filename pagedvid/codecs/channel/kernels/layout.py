"""What a kernel has to know of a page at compile time: here for channel codecs (int2, int4 and int8 with all their
options) and raw ones (bf16, fp32); see token_layout.py and klt_layout.py for the others.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.codecs.base import Codec
from pagedvid.codecs.channel.codec import ChannelCodec
from pagedvid.codecs.page import PageFormat, read_codec
from pagedvid.codecs.raw.codec import RawCodec
from pagedvid.errors import ConfigError

RAW_BLOCK_TOKENS = 32
"""Raw pages are short (18 tokens), so blocks gather from several; with 64 an A100 runs out of registers."""
MIN_HEAD_DIM = 32
"""Tensor cores want 16 channels of each half at least."""


@dataclass(frozen=True)
class PageLayout:
    """The pages of one codec in one pool; field for field the constants of the kernels."""

    head_dim: int
    page_bytes: int
    page_tokens: int
    bits: int
    """Of a stored value: 2, 4 or 8 are codes, 16 and 32 are bfloat16 and float32."""
    code_rows: int
    """Rows of codes; of a raw page all rows."""
    pair_steps: bool
    short_steps: bool
    stores_rotated: bool

    @staticmethod
    def of(page: PageFormat, codec: str) -> PageLayout:
        """Raises ConfigError for codecs that kernels do not read."""
        if reasons := unsupported_reasons(page, codec):
            raise ConfigError(f"no kernel reads pages of {codec}: {', '.join(reasons)}")
        name = read_codec(codec)
        return PageLayout(
            page.head_dim,
            page.num_bytes,
            page.page_tokens(codec),
            int(name.bits),
            page.rows - (name.metadata_rows if name.family == "channel" else 0),
            name.pair_steps,
            name.short_steps,
            name.stores_rotated,
        )

    @property
    def is_raw(self) -> bool:
        """Whether values are stored as they are, without steps."""
        return self.bits >= 16

    @property
    def typed(self) -> torch.dtype:
        """How kernels see the pool a second time: steps and zeros of codes, or the values of a raw page."""
        return {16: torch.bfloat16, 32: torch.float32}.get(self.bits, torch.float16)

    def view(self, records: Tensor) -> Tensor:
        """The pool's bytes [num_pages, page_bytes] in that type."""
        return records.view(self.typed)

    def block_tokens(self) -> int:
        """Tokens that a kernel decodes at once: a page, cut or padded to a power of two between 16 and 128."""
        if self.is_raw:
            return RAW_BLOCK_TOKENS
        largest = 1 << (self.page_tokens.bit_length() - 1)
        padded = largest if largest == self.page_tokens else 2 * largest
        # A page of 132 tokens would be padded to 256: blocks of 64 waste less.
        return max(16, padded if padded <= 128 else 128 if largest == self.page_tokens else 64)

    def constants(self, prefix: str) -> dict[str, int | bool]:
        """Arguments of a kernel, such as KEY_BITS for the prefix "KEY_"."""
        values = {
            "BITS": self.bits,
            "PAGE_TOKENS": self.page_tokens,
            "CODE_ROWS": self.code_rows,
            "PAIR_STEPS": self.pair_steps,
            "SHORT_STEPS": self.short_steps,
        }
        return {prefix + name: value for name, value in values.items()}


def layout_of(page: PageFormat, codec: Codec) -> PageLayout | None:
    """The pages of a codec; None when no kernel reads them, or when they are those of a codec from outside."""
    if not isinstance(codec, (ChannelCodec, RawCodec)) or unsupported_reasons(page, codec.name):
        return None
    return PageLayout.of(page, codec.name)


def unsupported_reasons(page: PageFormat, codec: str) -> list[str]:
    """Why kernels cannot read these pages; empty when they can."""
    reasons = []
    if codec == "sim" or read_codec(codec).family not in ("raw", "channel"):
        reasons.append(f"{codec} is neither raw nor a channel codec")
    reasons += head_dim_reasons(page.head_dim)
    if page.num_bytes % 16:
        reasons.append(f"pages of {page.num_bytes} bytes; they must be multiples of 16")
    return reasons


def head_dim_reasons(head_dim: int) -> list[str]:
    """Why no kernel can handle this head_dim; empty when they can."""
    if head_dim & (head_dim - 1) or head_dim < MIN_HEAD_DIM:
        return [f"head_dim is {head_dim}; it must be a power of two from {MIN_HEAD_DIM} on"]
    return []
