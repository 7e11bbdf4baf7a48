"""Klt codecs of any shape with made-up tables, tokens that suit them, and their pages somewhere in a pool."""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.codecs.base import make_codec
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.klt.codec import KltCodec
from pagedvid.codecs.klt.tables import KltTables
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from tests.devices import DEVICE


def klt_codec(
    name: str,
    head_dim: int = 32,
    num_heads: int = 2,
    rows: int = 6,
    tokens_per_frame: int = 10,
    num_frames: int = 3,
    seed: int = 0,
    size: float = 1.0,
) -> KltCodec:
    """A codec whose heads differ, with nonzero means and directions that are not orthogonal, like those of keys.

    `size`: the size of tokens that suit it.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    with torch.device("cpu"):
        rotated, _ = torch.linalg.qr(torch.randn(num_heads, head_dim, head_dim, generator=generator))
        stretch = torch.rand(num_heads, 1, head_dim, generator=generator) + 0.5
        frame, direction = torch.arange(num_frames)[:, None], torch.arange(head_dim)
        falling = torch.exp(-direction * 4 / head_dim - frame).flatten()
        deviation_hN = size * falling * (torch.rand(num_heads, falling.numel(), generator=generator) + 0.5)
        tables = KltTables(
            BlockLayout(tokens_per_frame, num_frames),
            deviation_hN.square().sort(-1, descending=True).values.mean(0),
            size * torch.randn(num_heads, head_dim, generator=generator),
            rotated * stretch,
            deviation_hN,
            deviation_hN.argsort(-1, descending=True),
        )
        return make_codec(read_codec(name), PageFormat(head_dim, rows, tokens_per_frame, num_frames), tables)


def klt_tokens(codec: KltCodec, num_tokens: int, seed: int = 0) -> Tensor:
    """Tokens float32 [H, n, D] that change slowly, of the variances that the codec expects of a block's first frame."""
    generator = torch.Generator("cpu").manual_seed(seed)
    coding, size = codec.coding, codec.page.tokens_per_frame
    shape = (coding.num_heads, num_tokens, codec.page.head_dim)
    places = torch.randn(shape[0], size, shape[2], generator=generator, device="cpu")
    places = places[:, torch.arange(num_tokens, device="cpu") % size]
    changes = torch.randn(*shape, generator=generator, device="cpu")
    normal = places + 0.3 * changes
    deviation_h1D = coding.deviation_h1F1D[:, :, 0, 0]
    return (coding.mean_h1D + (normal * deviation_h1D) @ coding.synthesis_hDD).to(DEVICE)


def random_pool(codec: KltCodec, num_pages: int, seed: int = 0) -> Tensor:
    """Records uint8 [num_pages, page_bytes] of random bytes, so that a page read by mistake shows."""
    generator = torch.Generator("cpu").manual_seed(seed)
    shape = (num_pages, codec.page.num_bytes)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator, device="cpu").to(DEVICE)


def scattered_pages(codec: KltCodec, num_tokens: int, records: Tensor, num_chunks: int = 1) -> Tensor:
    """Ids int32 [S, H, P] of different pages of the pool, for that many tokens of every chunk and head."""
    generator = torch.Generator("cpu").manual_seed(0)
    shape = (num_chunks, codec.coding.num_heads, read_codec(codec.name).num_pages(codec.page, num_tokens))
    count = torch.Size(shape).numel()
    assert count <= len(records), "the pool of the test is too small"
    pages = torch.randperm(len(records), generator=generator, device="cpu")[:count]
    return pages.view(shape).int().to(DEVICE)
