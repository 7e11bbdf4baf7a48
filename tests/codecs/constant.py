"""A codec that keeps nothing of what it is given and needs no page: every value is read as 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.base import Codec
from pagedvid.codecs.spec import CodecSpec, PageFormat

VALUE = 3.0


@dataclass(frozen=True)
class ConstantSpec(CodecSpec):
    implementation: ClassVar[str] = "tests.codecs.constant:make_constant"

    @override
    def page_tokens(self, page: PageFormat) -> int:
        return 1

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


@dataclass(frozen=True)
class ConstantCodec(Codec):
    page: PageFormat
    spec: ConstantSpec

    @override
    def encode(self, x_RnD: Tensor) -> Tensor:
        return torch.empty(len(x_RnD), 0, self.page.num_bytes, dtype=torch.uint8, device=x_RnD.device)

    @override
    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        assert records_RPB.shape == (len(out), 0, self.page.num_bytes)
        return out[:, :num_tokens].fill_(VALUE)


def make_constant(page: PageFormat, spec: ConstantSpec, tables: None) -> ConstantCodec:
    return ConstantCodec(page, spec)
