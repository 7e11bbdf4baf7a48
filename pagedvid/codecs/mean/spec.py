"""Name and sizes of "mean": no pages at all; every token reads as the mean of its (layer, KV head).

It is the cheapest rung of a ladder (registry.py): some heads hardly need to tell the tokens of their history apart.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from typing_extensions import override

from pagedvid.codecs.spec import F32_BYTES, CodecSpec, PageFormat

if TYPE_CHECKING:
    from torch import Tensor

    from pagedvid.codecs.tables_file import Calibration

UNLIMITED = 2**62
"""Tokens that would fit in a page, if there were one."""


@dataclass(frozen=True)
class MeanSpec(CodecSpec):
    """Keys or values that are known before they are stored."""

    implementation: ClassVar[str] = "pagedvid.codecs.mean.codec:make_codec"
    needs_tables: ClassVar[bool] = True

    @override
    def tables(self, calibration: Calibration, kind: str, layer: int) -> Tensor:
        return calibration.mean(kind, layer)

    @override
    def page_tokens(self, page: PageFormat) -> int:
        return UNLIMITED

    @override
    def num_pages(self, page: PageFormat, num_tokens: int) -> int:
        return 0

    @override
    def padded_tokens(self, page: PageFormat, num_tokens: int) -> int:
        return num_tokens

    @override
    def encode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        return 0

    @override
    def decode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        return 0

    @override
    def table_bytes(self, page: PageFormat) -> int:
        return F32_BYTES * page.head_dim


def read_mean(name: str) -> MeanSpec | None:
    """The spec for a name; None for a name of another family."""
    return MeanSpec(name, bits=0) if name == "mean" else None
