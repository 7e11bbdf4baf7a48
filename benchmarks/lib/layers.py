"""One attention layer in the shapes of real models, with dense keys or a cache of any codec, for the GPU benchmarks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagedvid.attention.dense.choice import create_provider
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import stream_bytes
from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.codecs.base import make_codec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.klt.tables import KltTables
from pagedvid.codecs.spec import PageFormat, block_frames
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.grid_rotary import GridRotary
from pagedvid.rotary.tables import rotate

LARGE_CHANNELS = 4
LARGE_CHANNEL_FACTOR = 8.0


@dataclass(frozen=True)
class LayerShape:
    """Heads of one layer, token grid of one chunk, denoise steps of a chunk. configs/models/ names the sources."""

    query_heads: int
    kv_heads: int
    head_dim: int
    frames: int
    rows: int
    """Rows of tokens in a frame."""
    columns: int
    denoise_steps: int

    @property
    def chunk_tokens(self) -> int:
        """Tokens of one chunk."""
        return self.frames * self.rows * self.columns

    def rope(self) -> GridRotary:
        """Wan's rotary embedding, for all models alike: 44 of 128 channels encode time, 42 the row, 42 the column."""
        side = self.head_dim // 6 * 2
        channels = (self.head_dim - 2 * side, side, side)
        return GridRotary.from_theta(channels, self.rows, self.columns, "half")


SHAPES = {
    "wan-1.3b": LayerShape(12, 12, 128, 3, 30, 52, 4),
    "wan-14b": LayerShape(40, 40, 128, 3, 30, 52, 4),
    "magi-1-4.5b": LayerShape(24, 8, 128, 6, 45, 45, 32),
    "hy-worldplay-8b": LayerShape(16, 16, 128, 4, 30, 52, 4),
    "tiny": LayerShape(4, 2, 32, 2, 5, 7, 4),
}
""""tiny" is for trying the programs out."""
REAL_SHAPES = [name for name in SHAPES if name != "tiny"]


class LayerInputs:
    """Random q, k, v before rotary embedding, BF16 [tokens, heads, head_dim]; some key channels are large."""

    def __init__(self, shape: LayerShape, device: torch.device, seed: int) -> None:
        self.shape = shape
        self.rope = shape.rope()
        self._generator = torch.Generator(device).manual_seed(seed)
        self._device = device
        self._channel_factor = torch.ones(shape.head_dim, device=device)
        self._channel_factor[:: shape.head_dim // LARGE_CHANNELS] = LARGE_CHANNEL_FACTOR

    def draw(self, num_tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """New random q, k, v."""
        q, k, v = (
            torch.randn(num_tokens, heads, self.shape.head_dim, generator=self._generator, device=self._device)
            for heads in (self.shape.query_heads, self.shape.kv_heads, self.shape.kv_heads)
        )
        return q.bfloat16(), (k * self._channel_factor).bfloat16(), v.bfloat16()

    def rotated(self, x: Tensor, first_token: int) -> Tensor:
        """x [tokens, heads, head_dim] after rotary embedding."""
        cos, sin = (table.to(self._device).unsqueeze(1) for table in self.rope.tables(first_token, len(x)))
        return rotate(x.float(), cos, sin).bfloat16()


def dense_call(
    provider: str, inputs: LayerInputs, num_chunks: int, num_streams: int, device: torch.device
) -> Callable[[], Tensor]:
    """Attention of each stream's current chunk over all its keys, `num_chunks` cached chunks and its own."""
    shape = inputs.shape
    num_keys = (num_chunks + 1) * shape.chunk_tokens
    queries, keys, values = [], [], []
    for _ in range(num_streams):
        q, k, v = inputs.draw(num_keys)
        queries.append(inputs.rotated(q, 0)[-shape.chunk_tokens :])
        keys.append(inputs.rotated(k, 0))
        values.append(v)
    q, k, v = (torch.stack(parts) for parts in (queries, keys, values))
    attend = create_provider(provider)
    return lambda: attend(q, k, v, shape.head_dim**-0.5)[0]


def layer_cache(
    shape: LayerShape,
    codec: str,
    window: Window,
    device: torch.device,
    *,
    num_layers: int = 1,
    num_streams: int = 1,
    backend: str = "auto",
    **settings: Any,
) -> PagedKVCache:
    """A cache with room for the windows of all streams. `settings` go to `CacheSpec`.

    The correction is the one that suits the codec. klt codecs get made-up tables, which cost as much time as real ones.
    """
    codecs = StreamCodecs(codec)
    spec = CacheSpec(
        num_layers,
        shape.kv_heads,
        shape.head_dim,
        num_query_heads=shape.query_heads,
        codecs=codecs,
        tokens_per_frame=shape.rows * shape.columns,
        frames_per_block=block_frames(shape.frames),
        **{"correction": codecs.correction, **settings},
    )
    memory = num_streams * stream_bytes(spec.shape, window, spec.codecs, shape.chunk_tokens)
    return PagedKVCache(spec, memory, device, backend=backend, book=_book(codec, spec))


def _book(codec: str, spec: CacheSpec) -> CodecBook:
    page = spec.shape.page
    calibrated = [each for each in ChunkCodecs.read(codec).all if each.needs_tables]
    own = {each.name: make_codec(each, page, made_up_tables(page, spec.num_kv_heads)) for each in calibrated}
    return CodecBook(page, spec.num_kv_heads, own=own)


def made_up_tables(page: PageFormat, num_heads: int) -> KltTables:
    """Falling deviations in random directions."""
    generator = torch.Generator().manual_seed(0)
    size = page.frames_per_block * page.head_dim
    directions, _ = torch.linalg.qr(torch.randn(num_heads, page.head_dim, page.head_dim, generator=generator))
    deviation_hN = torch.exp(-4 * torch.rand(num_heads, size, generator=generator))
    return KltTables(
        BlockLayout(page.tokens_per_frame, page.frames_per_block),
        deviation_hN.square().sort(-1, descending=True).values.mean(0),
        torch.zeros(num_heads, page.head_dim),
        directions,
        deviation_hN,
        deviation_hN.argsort(-1, descending=True),
    )
