"""What a kernel must know of a page at compile time, for pages of channel codes (int2, int4 and int8 with all their
options) and of plain values (bf16, fp32).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.codecs.channel.spec import ChannelSpec
from pagedvid.codecs.raw.spec import RawSpec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.triton_common import head_dim_reasons
from pagedvid.errors import ConfigError

RAW_BLOCK_TOKENS = 32
"""Raw pages are short (18 tokens), so that a block takes tokens of several; with 64 an A100 runs out of registers."""


@dataclass(frozen=True)
class PageLayout:
    """The pages of one codec in one pool; the fields are the constants of the kernels."""

    head_dim: int
    page_bytes: int
    page_tokens: int
    bits: int
    """Bits of a stored value: 2, 4 or 8 for codes, 16 for bfloat16, 32 for float32."""
    code_rows: int
    """Rows of codes; all rows of a raw page."""
    pair_step_sizes: bool = False
    short_step_sizes: bool = False

    @staticmethod
    def of_channels(page: PageFormat, spec: ChannelSpec) -> PageLayout:
        """Pages of channel codes. Raises ConfigError for pages that kernels cannot read."""
        _require_supported(page, spec.name)
        return PageLayout(
            page.head_dim,
            page.num_bytes,
            spec.page_tokens(page),
            spec.bits,
            page.rows - spec.metadata_rows,
            spec.by_pair,
            spec.is_short,
        )

    @staticmethod
    def of_values(page: PageFormat, spec: RawSpec) -> PageLayout:
        """Pages of plain values. Raises ConfigError for pages that kernels cannot read."""
        _require_supported(page, spec.name)
        return PageLayout(page.head_dim, page.num_bytes, spec.page_tokens(page), spec.bits, page.rows)

    @property
    def is_raw(self) -> bool:
        """Whether pages hold plain values, without step sizes."""
        return self.bits >= 16

    @property
    def typed(self) -> torch.dtype:
        """The dtype in which kernels read step sizes and zero points, or the values of a raw page."""
        return {16: torch.bfloat16, 32: torch.float32}.get(self.bits, torch.float16)

    def view(self, records: Tensor) -> Tensor:
        """The pool's bytes [num_pages, page_bytes], viewed in that dtype."""
        return records.view(self.typed)

    def block_tokens(self) -> int:
        """Tokens that a kernel decodes at once: a page, cut or padded to a power of two from 16 to 128."""
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
            "PAIR_STEP_SIZES": self.pair_step_sizes,
            "SHORT_STEP_SIZES": self.short_step_sizes,
        }
        return {prefix + name: value for name, value in values.items()}


def unsupported_reasons(page: PageFormat) -> list[str]:
    """Why kernels cannot read pages of this format; empty if they can."""
    reasons = head_dim_reasons(page.head_dim)
    if page.num_bytes % 16:
        reasons.append(f"pages have {page.num_bytes} bytes; they must have a multiple of 16")
    return reasons


def _require_supported(page: PageFormat, name: str) -> None:
    if reasons := unsupported_reasons(page):
        raise ConfigError(f"no kernel reads pages of {name}: {', '.join(reasons)}")
