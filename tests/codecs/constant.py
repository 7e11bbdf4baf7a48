"""A codec that keeps nothing of what it is given and needs no page: every value is read as 3."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.base import Codec
from pagedvid.codecs.mean.spec import MeanSpec
from pagedvid.codecs.spec import PageFormat

VALUE = 3.0


@dataclass(frozen=True)
class ConstantSpec(MeanSpec):
    implementation: ClassVar[str] = "tests.codecs.constant:make_constant"
    needs_tables: ClassVar[bool] = False

    @override
    def tables(self, calibration, kind, layer) -> None:
        return None


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
