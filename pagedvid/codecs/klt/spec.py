"""Names and sizes of klt2, klt1.5, ...: transform coding with that many bits per value."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from pagedvid.codecs.spec import F32_BYTES, CodecSpec, PageFormat

if TYPE_CHECKING:
    from pagedvid.codecs.klt.tables import KltTables
    from pagedvid.codecs.tables_file import Calibration

KLT_LADDER = ("mean", "klt0.75", "klt1.5", "klt2", "klt3", "klt4", "klt6")
"""Rungs that differ by whole pages of 12 rows, which klt0.75 asks for: 0, 1, 2, 3, 4, 6 and 8 for 128 tokens."""
PAGE_TOKENS = 128
"""Tokens of a page with the rows that suit a klt codec."""
ENCODE_BYTES, DECODE_BYTES = 29, 21
"""Bytes of temporaries per value of the pages, measured with the tables of the demo model."""
_NAME = re.compile(r"klt(?P<bits>[0-9](\.[0-9]{1,6})?)")


@dataclass(frozen=True)
class KltSpec(CodecSpec):
    """Transform coding of blocks of frames."""

    implementation: ClassVar[str] = "pagedvid.codecs.klt.codec:make_codec"
    needs_tables: ClassVar[bool] = True

    bits: float
    """Per value, scales included."""

    @property
    @override
    def page_rows(self) -> int:
        return -(-int(PAGE_TOKENS * self.bits) // 8)

    def page_blocks(self, page: PageFormat) -> int:
        """Blocks of `frames_per_block` tokens per page: the fewest that keep within the codec's bits per value."""
        return math.ceil(8 * page.rows / (self.bits * page.frames_per_block) - 1e-9)

    def bits_per_block(self, page: PageFormat) -> int:
        """Bits for the codes of one block: a page without its row of scales, shared evenly, rounded down to bytes."""
        return (page.rows - 1) * page.head_dim // self.page_blocks(page) * 8

    @override
    def page_tokens(self, page: PageFormat) -> int:
        return self._checked_page_tokens(page, self.page_blocks(page) * page.frames_per_block)

    @override
    def num_pages(self, page: PageFormat, num_tokens: int) -> int:
        self.page_tokens(page)  # raises when a page holds no token
        span_tokens = page.tokens_per_frame * page.frames_per_block
        return -(-page.tokens_per_frame * -(-num_tokens // span_tokens) // self.page_blocks(page))

    @override
    def encode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        padded = self._padded_values(page, num_heads, num_tokens)
        return ENCODE_BYTES * padded + self._record_bytes(page, num_heads, num_tokens)

    @override
    def decode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        return DECODE_BYTES * self._padded_values(page, num_heads, num_tokens)

    @override
    def tables(self, calibration: Calibration, kind: str, layer: int) -> KltTables:
        return calibration.tables(kind, layer)

    @override
    def table_bytes(self, page: PageFormat) -> int:
        # The tensors of `KltCoding`: two matrices, two means and two sets of deviations in float32; ranks, indices and
        # directions in int64.
        num_coefficients = page.head_dim * page.frames_per_block
        floats = 2 * page.head_dim**2 + 2 * page.head_dim + 2 * num_coefficients
        return F32_BYTES * floats + 3 * 8 * num_coefficients


def read_klt(name: str) -> KltSpec | None:
    """The spec for a name; None for a name of another family."""
    match = _NAME.fullmatch(name)
    return KltSpec(name, float(match["bits"])) if match and 0.5 <= float(match["bits"]) <= 8 else None
