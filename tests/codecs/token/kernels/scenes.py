"""A small pool of pages of one token or hadamard codec."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pagedvid.codecs.base import make_codec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.token.codec import TokenCodec
from pagedvid.codecs.token.kernels.layout import TokenLayout
from tests.devices import DEVICE

CODECS = ("token2-g16", "token2-g64", "token4-g32", "token8-g128", "hadamard2-g64", "hadamard4-g32")
FAR_PAGES = 2_000_000
"""Pages of pools that are larger than 4 GiB; memory that is never touched costs nothing."""


def widest(codec: str, head_dim: int) -> str:
    """The codec with a group that fits into `head_dim`."""
    name, group = codec.rsplit("-g", 1)
    return f"{name}-g{min(int(group), head_dim)}"


@dataclass
class TokenScene:
    """Other pages hold random bytes, so that one that is read by mistake shows."""

    codec_name: str
    head_dim: int
    num_heads: int = 2
    rows: int = 36
    num_pages: int = 60

    def __post_init__(self) -> None:
        self.generator = torch.Generator("cpu").manual_seed(0)
        self.page = PageFormat(self.head_dim, self.rows)
        size = (self.num_pages, self.page.num_bytes)
        self.records = torch.randint(0, 256, size, dtype=torch.uint8, generator=self.generator, device="cpu").to(DEVICE)
        self._free = torch.randperm(self.num_pages, generator=self.generator, device="cpu").int().to(DEVICE)

    @cached_property
    def codec(self) -> TokenCodec:
        codec = make_codec(read_codec(self.codec_name), self.page)
        assert isinstance(codec, TokenCodec)
        return codec

    @cached_property
    def layout(self) -> TokenLayout:
        return TokenLayout.of(self.page, self.codec.spec, DEVICE)

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device="cpu").to(DEVICE)

    def take(self, num_tokens: int) -> Tensor:
        """Pages for that many tokens of every head, int32 [H, P], anywhere in the pool."""
        per_head = read_codec(self.codec_name).num_pages(self.page, num_tokens)
        count = self.num_heads * per_head
        pages, self._free = self._free[:count], self._free[count:]
        assert len(pages) == count, "the pool of the test is too small"
        return pages.view(self.num_heads, per_head)

    def store(self, num_tokens: int) -> Tensor:
        """Random tokens of growing size, written by the codec; returns their pages."""
        pages = self.take(num_tokens)
        size = torch.linspace(0.1, 4, num_tokens)[:, None] * torch.linspace(0.3, 2, self.head_dim)
        self.records[pages.long()] = self.codec.encode(self.randn(self.num_heads, num_tokens, self.head_dim) * size)
        return pages

    def copy_far(self, pages: Tensor) -> tuple[Tensor, Tensor]:
        """A pool of more than 4 GiB with copies of these pages at its end, and where they are."""
        pool = torch.empty(FAR_PAGES, self.page.num_bytes, dtype=torch.uint8)
        far = (FAR_PAGES - 1 - torch.arange(pages.numel())).int().view(pages.shape)
        assert int(far.min()) * self.page.num_bytes > 2**32
        pool[far.long()] = self.records[pages.long()]
        return pool, far
