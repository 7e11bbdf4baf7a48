"""A codec as another package would provide it: fp16 values, with a Triton kernel ("half-k") and without ("half").

A page is filled with fp16 values, token after token. Only public names of pagedvid are used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pagedvid.codecs.base import Codec, PageKernels
from pagedvid.codecs.registry import CodecFamily
from pagedvid.codecs.spec import CodecSpec, PageFormat


@dataclass(frozen=True)
class HalfSpec(CodecSpec):
    implementation: ClassVar[str] = "tests.codecs.outside.family:make_codec"

    def page_tokens(self, page: PageFormat) -> int:
        return self._checked_page_tokens(page, page.rows // 2)

    def encode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        return 2 * num_heads * self.num_pages(page, num_tokens) * page.num_bytes

    def decode_bytes(self, page: PageFormat, num_heads: int, num_tokens: int) -> int:
        return 0


class HalfCodec(Codec):
    def __init__(self, page: PageFormat, spec: HalfSpec) -> None:
        self.page = page
        self.spec = spec

    def encode(self, x_RnD: Tensor) -> Tensor:
        num_rows, num_tokens, head_dim = x_RnD.shape
        values = x_RnD.new_zeros(num_rows, self.spec.padded_tokens(self.page, num_tokens), head_dim)
        values[:, :num_tokens] = x_RnD
        as_bytes = values.half().unflatten(1, (-1, self.page_tokens)).flatten(2).view(torch.uint8)
        return torch.nn.functional.pad(as_bytes, (0, self.page.num_bytes - as_bytes.shape[-1]))

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        used = records_RPB[..., : 2 * self.page_tokens * self.page.head_dim].contiguous()
        values = used.view(torch.float16).unflatten(-1, (self.page_tokens, -1)).flatten(1, 2)
        return out[:, :num_tokens].copy_(values[:, :num_tokens])

    def kernels(self, device: torch.device) -> PageKernels:
        if self.name == "half":
            return super().kernels(device)
        from tests.codecs.outside.kernels import HalfKernels

        return HalfKernels(self.page, self.page_tokens)


def make_codec(page: PageFormat, spec: HalfSpec, tables: Any) -> HalfCodec:
    assert tables is None
    return HalfCodec(page, spec)


def read_half(name: str) -> HalfSpec | None:
    return HalfSpec(name, 16, is_quantized=False) if name in ("half", "half-k") else None


FAMILY = CodecFamily("half, half-k", read_half)
