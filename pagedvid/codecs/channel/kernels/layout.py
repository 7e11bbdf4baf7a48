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

    def constants(self) -> dict[str, int | bool]:
        """Compile-time arguments of a kernel."""
        return {
            "BITS": self.bits,
            "PAGE_TOKENS": self.page_tokens,
            "CODE_ROWS": self.code_rows,
            "PAIR_STEP_SIZES": self.pair_step_sizes,
            "SHORT_STEP_SIZES": self.short_step_sizes,
        }


def unsupported_reasons(page: PageFormat) -> list[str]:
    """Why kernels cannot read pages of this format; empty if they can."""
    reasons = head_dim_reasons(page.head_dim)
    if page.num_bytes % 16:
        reasons.append(f"pages have {page.num_bytes} bytes; they must have a multiple of 16")
    return reasons


def _require_supported(page: PageFormat, name: str) -> None:
    if reasons := unsupported_reasons(page):
        raise ConfigError(f"no kernel reads pages of {name}: {', '.join(reasons)}; choose another codec or backend")
