"""Codecs that store plain values: fp32 and bf16. A page is filled with values, token by token.

Axes: R rows, one per (chunk, KV head); n tokens; P pages; D head_dim; B bytes of a page.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.codecs.base import Codec, PageKernels, not_storable
from pagedvid.codecs.raw.spec import RawSpec
from pagedvid.codecs.spec import PageFormat


@dataclass(frozen=True)
class RawCodec(Codec):
    """Stores values in a float dtype; as "sim", in fp32, values that a codec under study has already rounded."""

    page: PageFormat
    spec: RawSpec

    @cached_property
    def dtype(self) -> torch.dtype:
        """The dtype of the stored values."""
        return torch.bfloat16 if self.spec.bits == 16 else torch.float32

    @override
    def encode(self, x_RnD: Tensor) -> Tensor:
        stored = x_RnD.to(self.dtype)
        if not bool(torch.isfinite(stored).all()):
            raise not_storable(x_RnD, torch.finfo(self.dtype).max)
        num_rows, num_tokens, head_dim = x_RnD.shape
        values = stored.new_zeros(num_rows, self.spec.padded_tokens(self.page, num_tokens), head_dim)
        values[:, :num_tokens] = stored
        value_bytes = values.view(num_rows, self.spec.num_pages(self.page, num_tokens), -1).view(torch.uint8)
        return torch.nn.functional.pad(value_bytes, (0, self.page.num_bytes - value_bytes.shape[-1]))

    @override
    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        value_bytes = self.spec.page_tokens(self.page) * self.page.head_dim * self.dtype.itemsize
        values = records_RPB[..., :value_bytes]
        if self.page.num_bytes % self.dtype.itemsize:  # later pages are not aligned to the dtype
            values = values.clone(memory_format=torch.contiguous_format)
        tokens = out[:, :num_tokens]
        paged = values.view(self.dtype).unflatten(-1, (-1, self.page.head_dim))
        return tokens.copy_(paged.flatten(1, 2)[:, :num_tokens])

    @override
    def kernels(self, device: torch.device) -> PageKernels:
        from pagedvid.codecs.channel.kernels.layout import PageLayout, unsupported_reasons
        from pagedvid.codecs.raw.kernels import RawKernels

        if self.name == "sim" or unsupported_reasons(self.page):
            return super().kernels(device)
        return RawKernels(PageLayout.of_values(self.page, self.spec))


def make_codec(page: PageFormat, spec: RawSpec, tables: None) -> RawCodec:
    """The codec of a spec; the `CodecSpec.implementation` of `RawSpec`."""
    return RawCodec(page, spec)
