"""A small pool of pages of one channel codec, or of plain values."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.codecs.base import Codec, PageKernels, make_codec
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.codecs.channel.kernels.pages import ChannelKernels
from pagedvid.codecs.raw.kernels import RawKernels
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from tests.devices import DEVICE


@dataclass
class ChannelScene:
    """Other pages hold random bytes, so that one that is read by mistake shows."""

    codec_name: str
    head_dim: int
    num_heads: int = 2
    rows: int = 36
    num_pages: int = 150

    def __post_init__(self) -> None:
        self.generator = torch.Generator("cpu").manual_seed(0)
        self.page = PageFormat(self.head_dim, self.rows)
        size = (self.num_pages, self.page.num_bytes)
        self.records = torch.randint(0, 256, size, dtype=torch.uint8, generator=self.generator, device="cpu").to(DEVICE)
        self._free = torch.randperm(self.num_pages, generator=self.generator, device="cpu").int().to(DEVICE)

    @cached_property
    def codec(self) -> Codec:
        return make_codec(read_codec(self.codec_name), self.page)

    @cached_property
    def kernels(self) -> PageKernels:
        return self.codec.kernels(DEVICE)

    @property
    def layout(self) -> PageLayout:
        assert isinstance(self.kernels, (ChannelKernels, RawKernels))
        return self.kernels.layout

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device="cpu").to(DEVICE)

    def take(self, num_pages: int) -> Tensor:
        """Pages of every head, int32 [H, P], anywhere in the pool."""
        count = self.num_heads * num_pages
        pages, self._free = self._free[:count], self._free[count:]
        assert len(pages) == count, "the pool of the test is too small"
        return pages.view(self.num_heads, num_pages)

    def store(self, num_tokens: int, num_chunks: int = 1) -> Tensor:
        """Chunks of random tokens of growing size, so that step sizes differ; returns their pages [S, H, P]."""
        size = torch.linspace(0.3, 4, num_tokens)[:, None] * torch.linspace(0.3, 2, self.head_dim)
        return torch.stack([self._store(num_tokens, size) for _ in range(num_chunks)])

    def _store(self, num_tokens: int, size: Tensor) -> Tensor:
        pages = self.take(read_codec(self.codec_name).num_pages(self.page, num_tokens))
        x = self.randn(self.num_heads, num_tokens, self.head_dim) * size.to(DEVICE)
        self.records[pages.long()] = self.codec.encode(x)
        return pages

    def encoded(self, x_nHD: Tensor) -> Tensor:
        """Records uint8 [H, P, page_bytes], as kernels must write them."""
        return self.codec.encode(x_nHD.transpose(0, 1).float())
