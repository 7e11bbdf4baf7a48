"""A small pool with chunks of random keys and values scattered over it, and what launches need to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedvid.attention.kernels.work import PageBias, PagedWork, Tiling
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.rotary.axis_tables import AngleTables
from tests.attention.kernels.reference import Segment, codec_of, layout_of

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where there is a GPU the kernels run on it, otherwise in the interpreter (tests/conftest.py)."""

SMALL = Tiling(block_rows=32, max_block_tokens=64, num_warps=4, num_stages=1)
"""Blocks that the interpreter gets through quickly; the arithmetic is that of large ones."""


FRAME_TOKENS, WIDTH = 12, 4
"""Of the grid of positions that keys rotate by."""


@dataclass
class Scene:
    """Chunks of one (key codec, value codec) in one pool."""

    codecs: tuple[str, str]
    head_dim: int
    num_kv_heads: int
    rows: int = 36
    large_channel: float = 1.0
    """Factor of one key channel: above 10 it becomes hot."""
    seed: int = 0
    num_pages: int = 150
    """Of the pool, filled with random bytes: a page that is read by mistake gives NaN sooner or later."""
    segments: list[Segment] = field(default_factory=list)
    """In the order of `add`."""

    def __post_init__(self) -> None:
        self.generator = torch.Generator("cpu").manual_seed(self.seed)
        self.page = PageFormat(self.head_dim, self.rows)
        self.layouts = tuple(layout_of(self.page, codec) for codec in self.codecs)
        shape = (self.num_pages, self.page.num_bytes)
        self.records = torch.randint(0, 256, shape, dtype=torch.uint8, generator=self.generator, device="cpu").to(
            DEVICE
        )
        self._free = torch.randperm(len(self.records), generator=self.generator, device="cpu").int().to(DEVICE)
        self._rows: list[tuple[int, ...]] = []
        self._lists: list[Tensor] = []
        self._height_and_width = self.randn(FRAME_TOKENS // WIDTH + WIDTH, self.head_dim // 2)
        self._frames: list[Tensor] = []

    def randn(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, device="cpu").to(DEVICE)

    def add(self, num_tokens: int, *, angles: bool = True, alpha: bool = True, variance: bool = False) -> Segment:
        """A chunk of random tokens, encoded into pages anywhere in the pool."""
        keys = self.randn(self.num_kv_heads, num_tokens, self.head_dim) * torch.linspace(0.3, 2, self.head_dim)
        keys[..., 3] *= self.large_channel
        values = self.randn(self.num_kv_heads, num_tokens, self.head_dim)
        tables = [self.store(codec, x) for codec, x in zip(self.codecs, (keys, values), strict=True)]
        frame_row = self.angles().first_frame_row + sum(len(frames) for frames in self._frames)
        self._frames.append(self.randn(-(-num_tokens // FRAME_TOKENS), self.head_dim // 2))
        segment = Segment(
            *tables,
            num_tokens,
            self.angles().of_chunk(frame_row, num_tokens) if angles else None,
            self.randn(self.num_kv_heads).sigmoid() + 0.5 if alpha else None,
            0.05 * self.randn(self.num_kv_heads, self.head_dim) if variance else None,
        )
        starts = [sum(len(pages) for pages in self._lists) + offset for offset in (0, tables[0].numel())]
        self._rows.append((starts[0], tables[0].shape[1], starts[1], tables[1].shape[1], num_tokens, frame_row))
        self._lists += [table.flatten() for table in tables]
        self.segments.append(segment)
        return segment

    def store(self, codec: str, x_HnD: Tensor) -> Tensor:
        """Writes tokens to free pages; returns their ids, int32 [H, P]."""
        num_pages = read_codec(codec).num_pages(self.page, x_HnD.shape[1])
        pages = self.take(num_pages)
        self.records[pages.long()] = codec_of(self.page, codec).encode(x_HnD)
        return pages

    def take(self, pages_per_head: int) -> Tensor:
        count = self.num_kv_heads * pages_per_head
        pages, self._free = self._free[:count], self._free[count:]
        assert len(pages) == count, "the pool of the test is too small"
        return pages.view(self.num_kv_heads, -1)

    def work(self, lengths: Sequence[int], reads: Sequence[int], group: int, tiling: Tiling = SMALL) -> PagedWork:
        """Ranges of lengths[e] queries; range e reads the next reads[e] segments."""
        ranges, start, segment = [], 0, 0
        for length, count in zip(lengths, reads, strict=True):
            ranges.append((start, length, segment, segment + count))
            start, segment = start + length, segment + count
        pages = torch.cat(self._lists) if self._lists else torch.zeros(1, dtype=torch.int32)
        segments, bounds = (torch.tensor(rows, device="cpu") for rows in (self._rows, ranges))
        return PagedWork.cut(pages, segments.view(-1, 6), bounds, group, tiling)

    def angles(self) -> AngleTables:
        """Of all chunks; pairs rotate with time, rows and columns in no particular order."""
        angles = torch.cat([self._height_and_width, *self._frames])
        axes = (torch.arange(self.head_dim // 2) * 5 + 1) % 7 % 3
        return AngleTables(angles.cos(), angles.sin(), axes.int().to(DEVICE), FRAME_TOKENS, WIDTH)

    def frame_row(self, segment: Segment) -> int:
        """Row of a chunk's first frame."""
        (number,) = [i for i, each in enumerate(self.segments) if each is segment]
        return self._rows[number][5]

    def bias(self, source: str, *, rotates: bool) -> PageBias:
        alphas = [segment.alpha for segment in self.segments if segment.alpha is not None]
        variances = [segment.variance for segment in self.segments if segment.variance is not None]
        return PageBias(
            source,
            rotates,
            torch.stack(alphas) if alphas else None,
            torch.stack(variances) if variances else None,
        )
