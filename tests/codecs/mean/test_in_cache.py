"""Heads without pages in a cache: they attend to their means, wherever keys are rotated to."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.codecs.book import CodecBook
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.reference import TableRope
from tests.budgets.profiles import HEADS, LAYERS, calibration
from tests.codecs.klt.scenes import FRAME_TOKENS, HEAD_DIM, NUM_FRAMES, SPAN_TOKENS

ROPE = TableRope("half", HEAD_DIM)
STORED = [("mean", "mean"), ("mean", "fp32"), ("fp32", "mean"), ("fp32", "fp32")]
"""(keys, values) of head 0 and 1 of layer 0, then of layer 1."""


def make_cache(correction: str = "off") -> PagedKVCache:
    heads = [(number // 2, number % 2, number % 2, "/".join(pair)) for number, pair in enumerate(STORED)]
    codecs = StreamCodecs(ChunkCodecs.read("fp32", heads=heads))
    spec = CacheSpec(
        LAYERS, HEADS, HEAD_DIM, codecs=codecs, tokens_per_frame=FRAME_TOKENS, frames_per_block=NUM_FRAMES,
        correction=correction, debug_checks=True,
    )  # fmt: skip
    return PagedKVCache(spec, "1MiB", book=CodecBook(spec.shape.page, HEADS, calibration()))


def given(layer: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(layer)
    return list(torch.randn(6, SPAN_TOKENS, HEADS, HEAD_DIM, generator=generator))


def kept(kind: str, layer: int, exact_nHD: Tensor) -> Tensor:
    """What the heads of a layer read, float64 [H, n, D]."""
    mean_HD, rows = calibration().mean(kind, layer), []
    for head in range(HEADS):
        is_mean = STORED[2 * layer + head][kind == "values"] == "mean"
        rows.append(mean_HD[head].expand(SPAN_TOKENS, -1) if is_mean else exact_nHD[:, head])
    return torch.stack(rows).double()


@pytest.mark.parametrize("correction", ["off", "variance", "measured"])
def test_heads_read_their_means(correction):
    cache = make_cache(correction)
    stream = cache.open(Window(1, 2), SPAN_TOKENS)
    with cache.commit([stream]) as step:
        for layer in range(LAYERS):
            step.attend(layer, *given(layer)[:3], ROPE)
    (chunk,) = stream.chunks()
    pages_of_one_table = -(-SPAN_TOKENS // 9)
    assert chunk.num_pages == 4 * pages_of_one_table
    cache.check()
    with cache.denoise([stream]) as step:
        outputs = [step.attend(layer, *given(layer)[3:], ROPE) for layer in range(LAYERS)]
    for layer, out_THD in enumerate(outputs):
        _, k, v, now_q, now_k, now_v = given(layer)
        read = cache.read(stream, 0, layer)
        torch.testing.assert_close(read.k.transpose(0, 1).double(), kept("keys", layer, k))
        torch.testing.assert_close(read.v.transpose(0, 1).double(), kept("values", layer, v))
        if correction == "off":
            torch.testing.assert_close(
                out_THD.double(), expected(layer, k, v, now_q, now_k, now_v), atol=1e-4, rtol=1e-4
            )


def expected(layer: int, k: Tensor, v: Tensor, now_q: Tensor, now_k: Tensor, now_v: Tensor) -> Tensor:
    """Attention of the second chunk to both, float64 [T, H, D]."""
    keys = torch.cat([kept("keys", layer, k), now_k.transpose(0, 1).double()], dim=1)
    values = torch.cat([kept("values", layer, v), now_v.transpose(0, 1).double()], dim=1)
    cos, sin = (x.double() for x in ROPE.tables(0, 2 * SPAN_TOKENS))
    q = rotated(now_q.transpose(0, 1).double(), cos[SPAN_TOKENS:], sin[SPAN_TOKENS:])
    weights = (q @ rotated(keys, cos, sin).mT * HEAD_DIM**-0.5).softmax(-1)
    return (weights @ values).transpose(0, 1)


def rotated(x_HnD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_HnD.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
