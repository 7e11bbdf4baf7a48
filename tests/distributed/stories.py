"""What streams go through on one rank or on several: the same calls, with the same random queries, keys and values."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_image import ChunkImage, StreamImage
from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.klt.tables import KltTables
from pagedvid.codecs.tables_file import Calibration, save_calibration
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.projective_reference import SeededProjection
from tests.attention.reference import TableRope

LAYERS, HEADS, GROUP, HEAD_DIM = 2, 6, 2, 32
FRAME, FRAMES = 5, 5
CHUNK = FRAME * FRAMES
"""Tokens: neither 2 nor 3 ranks can have equally many of a chunk."""
SHORT = FRAME
ROPE = TableRope("half", HEAD_DIM)
WINDOW = Window(1, 2, positions="window")

BY_HEAD = StreamCodecs(
    ChunkCodecs.read("int4", heads=[(0, 0, 1, "bf16"), (0, 3, 3, "klt2"), (1, 1, 1, None), (1, 4, 5, "int8/int2")]),
    look_back=[(0, 2, 4, 1, False), (1, 0, 2, 1, True)],
)
"""Ranks need different numbers of pages, and some of a chunk when others have let go of it."""
ALIKE = {
    name: StreamCodecs(name)
    for name in ("fp32", "bf16", "int8", "int4/int2", "int2-pair", "int8-post", "hadamard4-g32", "klt2", "mean")
}
CODECS = {**ALIKE, "recoded": StreamCodecs("int2", "int8", "bf16", {0: "int4"}), "by head": BY_HEAD}


@lru_cache(maxsize=1)
def calibration() -> Calibration:
    """Tables in which all heads differ."""
    generator = torch.Generator().manual_seed(0)

    def tables() -> KltTables:
        analysis, _ = torch.linalg.qr(torch.randn(HEADS, HEAD_DIM, HEAD_DIM, generator=generator))
        deviation = torch.rand(HEADS, FRAMES * HEAD_DIM, generator=generator) + 0.1
        spectrum = torch.linspace(1, 0.1, FRAMES * HEAD_DIM)
        mean = torch.randn(HEADS, HEAD_DIM, generator=generator)
        order = deviation.argsort(dim=1, descending=True)
        return KltTables(BlockLayout(FRAME, FRAMES), spectrum / spectrum.sum(), mean, analysis, deviation, order)

    return Calibration.of("made up", [tables() for _ in range(LAYERS)], [tables() for _ in range(LAYERS)])


def cache_of(
    codecs: StreamCodecs, shard: dist.ProcessGroup | None = None, memory: int | str = "4MiB", **spec: Any
) -> PagedKVCache:
    whole = CacheSpec(
        LAYERS,
        HEADS,
        HEAD_DIM,
        num_query_heads=HEADS * GROUP,
        codecs=codecs,
        tokens_per_frame=FRAME,
        frames_per_block=FRAMES,
        **spec,
    )
    with tempfile.TemporaryDirectory() as folder:
        save_calibration(calibration(), Path(folder) / "tables.safetensors")
        return PagedKVCache(whole, memory, tables=Path(folder) / "tables.safetensors", shard=shard)


def qkv(num_tokens: int, seed: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Of all heads."""
    generator = torch.Generator().manual_seed(seed)
    heads = (HEADS * GROUP, HEADS, HEADS)
    q, k, v = (torch.randn(num_tokens, each, HEAD_DIM, generator=generator) for each in heads)
    k = k * torch.linspace(0.3, 1.5, HEAD_DIM) + torch.linspace(-1, 1, HEAD_DIM)
    return [x.to(dtype) for x in (q, k, v)]


@dataclass
class Told:
    """What a story came to on one rank."""

    outputs: list[Tensor] = field(default_factory=list)
    """Of every step and layer; of the rank's own tokens where tokens are split."""
    pages: list[tuple[int, int]] = field(default_factory=list)
    """(reserved, used) after every step."""
    image: StreamImage | None = None
    sent: tuple[int, int] = (0, 0)
    """(exchanges, bytes)."""


class Teller:
    """Tells a story with one cache."""

    def __init__(self, cache: PagedKVCache, *, splits: bool = False, dtype: torch.dtype = torch.float32) -> None:
        self.cache, self.splits, self.dtype, self.told = cache, splits, dtype, Told()

    def step(self, ranges: Sequence[Stream | QueryRange], seed: int, **how: Any) -> None:
        cache = self.cache
        with cache.step(ranges) as step:
            num_tokens = step.plan.num_tokens
            for layer in range(LAYERS):
                given, target = qkv(num_tokens, 10 * seed + layer, self.dtype), step
                if self.splits:
                    target = step.split_tokens()
                    given = [x[target.tokens] for x in given]
                self.told.outputs.append(target.attend(layer, *given, ROPE, **how))
        self.told.pages.append((cache.reserved_pages, cache.pool.num_used_pages))
        cache.check()

    def end(self, stream: Stream) -> Told:
        told = self.told
        told.image = self.cache.whole_image(self.cache.copy_out(stream)).with_model(None, lambda *_: None)
        if self.cache.sharding is not None:
            traffic = self.cache.sharding.exchange.traffic
            told.sent = traffic.num_exchanges, traffic.sent_bytes
        return told


def life(cache: PagedKVCache, **how: Any) -> Told:
    """Two streams of different lengths, together; a fork, a swap, and a stream that goes on from a whole image."""
    teller = Teller(cache, **how)
    long, short = cache.open(WINDOW, CHUNK, max_chunks=9), cache.open(WINDOW, SHORT, max_chunks=9)
    text = [x[:, :HEADS] for x in qkv(7, 5, teller.dtype)][1:]
    for chunk in range(4):
        teller.step([long, short], 100 + chunk, context=[None, (text[0], text[1])])
        commits = [QueryRange(long, commit=True), QueryRange(short, num_tokens=SHORT, commit=True)]
        teller.step(commits, 200 + chunk)
    twin = cache.fork(long)
    teller.step([QueryRange(twin, commit=True)], 300)
    teller.step([twin, long], 301)
    cache.release(twin)
    image = cache.copy_out(long)
    cache.release(long)
    long = cache.copy_in(image)
    teller.step([long], 400)
    again = cache.copy_in(cache.whole_image(cache.copy_out(short)))
    teller.step([again], 401)
    return teller.end(long)


def cameras(cache: PagedKVCache, **how: Any) -> Told:
    """Two views of the same keys."""
    teller = Teller(cache, **how)
    stream = cache.open(WINDOW, CHUNK)
    for chunk in range(3):
        range_ = QueryRange(stream, commit=True, tag=(chunk, FRAMES))
        teller.step([range_], 500 + chunk, projections=[SeededProjection(FRAME)])
    return teller.end(stream)


def corrections(mine: ChunkImage, theirs: ChunkImage) -> Iterator[tuple[Tensor, Tensor]]:
    """What two images of a chunk keep for the correction, head by head, where something reads it: a rank whose heads
    need nothing keeps nothing."""
    for layer in range(LAYERS):
        for head in range(HEADS):
            stored = theirs.codecs.at(layer, head)
            if stored is not None and stored.keys.is_quantized and theirs.alpha_LH is not None:
                yield mine.alpha_LH[layer, head], theirs.alpha_LH[layer, head]
                if not stored.keys.has_step_sizes:
                    yield mine.variance_LHD[layer, head], theirs.variance_LHD[layer, head]
