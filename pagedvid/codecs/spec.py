"""What is known of pages and of a codec without a tensor: sizes, names, and the memory that they need.

A page is `rows` rows of D bytes (D = head_dim) and holds tokens of the keys, or of the values, of one KV head of one
layer. Pages of every codec have the same size, so chunks of different precision share one pool.

A name is parsed once, where it enters (registry.py), into the `CodecSpec` of its family; nothing below handles text.
The codec itself, which reads and writes pages, is made from its spec (base.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from pagedvid.errors import ConfigError

if TYPE_CHECKING:
    from pagedvid.codecs.tables_file import Calibration

F32_BYTES = 4
DEFAULT_PAGE_ROWS = 36
MAX_BLOCK_FRAMES = 8
"""Most frames that klt transforms together: frames further apart have little in common."""


@dataclass(frozen=True)
class PageFormat:
    """The pages of one pool."""

    head_dim: int
    rows: int = DEFAULT_PAGE_ROWS
    tokens_per_frame: int = 1
    """Of the model. klt transforms the tokens at the same place of consecutive frames together."""
    frames_per_block: int = 1
    """Frames that klt transforms together."""

    @cached_property
    def num_bytes(self) -> int:
        """Bytes of one page."""
        return self.rows * self.head_dim


def block_frames(frames_per_chunk: int) -> int:
    """Frames that klt transforms together: the largest divisor of a chunk's frames up to MAX_BLOCK_FRAMES."""
    return max(frames for frames in range(1, MAX_BLOCK_FRAMES + 1) if frames_per_chunk % frames == 0)


@dataclass(frozen=True)
class CodecSpec(ABC):
    """One codec by name. Equal specs store values alike."""

    implementation: ClassVar[str]
    """"module:function" of a function `(page, spec, tables) -> Codec`; text, so that sizes are known without PyTorch.
    `tables` are what the method of that name returns."""

    needs_tables: ClassVar[bool] = False
    """Whether the codec is made from tables that were calibrated on the model."""

    name: str
    bits: float
    """Bits per value; without step sizes and zero points, unless the family says otherwise."""
    has_step_sizes: bool = field(default=False, kw_only=True)
    """Whether values are rounded to uniform grids, whose step sizes the correction uses."""
    stores_rotated: bool = field(default=False, kw_only=True)
    """Whether keys are stored after rotary embedding."""
    is_quantized: bool = field(default=True, kw_only=True)
    """Whether stored values differ by more than a float's rounding, so that attention has to be corrected."""

    @property
    def page_rows(self) -> int:
        """Rows of a page that suit this codec best."""
        return DEFAULT_PAGE_ROWS

    @property
    def survives_fp8(self) -> bool:
        """Whether attention over pages decoded to float8_e4m3fn has at most 2 % more error than over bfloat16.

        Measured by `benchmarks/fidelity.py --parts fp8`; docs/fidelity.md has the figures.
        """
        return False

    @abstractmethod
    def page_tokens(self, page: PageFormat) -> int:
        """Most tokens that one page holds. Raises ConfigError if the codec does not fit this page or head_dim."""

    def num_pages(self, page: PageFormat, num_tokens: int) -> int:
        """Pages of one (layer, KV head) for `num_tokens` tokens; the last may be partly filled. Raises ConfigError."""
        return -(-num_tokens // self.page_tokens(page))

    def padded_tokens(self, page: PageFormat, num_tokens: int) -> int:
        """Tokens that the pages for `num_tokens` tokens of one (layer, KV head) have room for. Raises ConfigError."""
        return self.num_pages(page, num_tokens) * self.page_tokens(page)

    @abstractmethod
    def encode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        """Most bytes of temporaries while `num_tokens` tokens of `num_heads` KV heads are encoded, records included."""

    @abstractmethod
    def decode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        """Most bytes of temporaries while they are decoded, without the output buffer."""

    def tables(self, calibration: Calibration, kind: str, layer: int) -> Any:
        """What the codec is made from, for the "keys" or "values" of all KV heads of a layer; None: nothing.

        Raises ConfigError if the calibration lacks it.
        """
        return None

    def table_bytes(self, page: PageFormat) -> int:
        """Bytes of the constants for the keys or the values of one (layer, KV head), kept once for all streams."""
        return 0

    def __str__(self) -> str:
        return self.name

    def _checked_page_tokens(self, page: PageFormat, num_tokens: int) -> int:
        if num_tokens < 1:
            raise ConfigError(f"a page of {page.rows} rows holds no token of {self.name}; raise page_rows")
        return num_tokens

    def _record_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        return num_heads * self.num_pages(page, num_tokens) * page.num_bytes

    def _padded_values(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        return num_heads * page.head_dim * self.padded_tokens(page, num_tokens)
