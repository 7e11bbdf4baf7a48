"""Names and sizes of fp32 and bf16, which store plain values, and of "sim", fp32 pages for a codec under study."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from typing_extensions import override

from pagedvid.codecs.spec import F32_BYTES, CodecSpec, PageFormat

_BITS = {"fp32": 32, "bf16": 16, "sim": 32}


@dataclass(frozen=True)
class RawSpec(CodecSpec):
    """Values in a float dtype: no step sizes, never corrected, except for "sim", which stands for a quantizer."""

    implementation: ClassVar[str] = "pagedvid.codecs.raw.codec:make_codec"

    bits: int
    """Bits of a value."""

    @override
    def page_tokens(self, page: PageFormat) -> int:
        return self._checked_page_tokens(page, page.rows * 8 // self.bits)

    @override
    def encode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        width, stored = self.bits // 8, num_heads * page.head_dim * num_tokens
        copy = 0 if width == F32_BYTES else width * stored
        joined = width * self._padded_values(page, num_heads, num_tokens)
        joined += self._record_bytes(page, num_heads, num_tokens)
        return copy + max((width + 3) * stored, joined)  # isfinite: |x| and three masks

    @override
    def decode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        return 0


def read_raw(name: str) -> RawSpec | None:
    """The spec for a name; None for a name of another family."""
    if name not in _BITS:
        return None
    is_sim = name == "sim"
    return RawSpec(name, _BITS[name], is_quantized=is_sim, has_step_sizes=is_sim)
