"""Caches, histories and steps that the attention tests share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.reference import (
    TableRope,
    as_arriving,
    expected_attention,
    random_qkv,
)

HEAD_DIM = 64
ROPES = {None: None, "half": TableRope("half", HEAD_DIM), "interleaved": TableRope("interleaved", HEAD_DIM)}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def make_cache(
    codecs: StreamCodecs | str = "int2",
    *,
    group: int = 1,
    head_dim: int = HEAD_DIM,
    scratch: int | str = "8MiB",
    **spec,
) -> PagedKVCache:
    """Two layers, two KV heads."""
    codecs = StreamCodecs(codecs) if isinstance(codecs, str) else codecs
    return PagedKVCache(
        CacheSpec(2, 2, head_dim, num_query_heads=2 * group, codecs=codecs, **spec), "16MiB", scratch=scratch
    )


def attend(cache, step, layer, seed, rope=None, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """One layer with random tensors: (output, expected output)."""
    q, k, v = random_qkv(cache, step.plan.num_tokens, 10 * seed + layer, dtype)
    arriving = [as_arriving(cache, step, x, rope) for x in (q, k)]
    out = step.attend(layer, *arriving, v, rope)
    assert out.dtype == dtype and out.shape == q.shape
    return out.double(), expected_attention(cache, step, layer, q, k, v, rope)


def run(cache: PagedKVCache, ranges: Sequence[QueryRange], seed: int, rope=None, dtype=torch.float32) -> Tensor:
    """All layers of a step, each checked; returns the outputs [layers, T, Hq, D]."""
    with cache.step(ranges) as step:
        pairs = [attend(cache, step, layer, seed, rope, dtype) for layer in range(cache.spec.num_layers)]
    for out, expected in pairs:
        torch.testing.assert_close(out, expected, rtol=0, atol=TOLERANCE[dtype] * float(expected.abs().max()))
    return torch.stack([out for out, _ in pairs])


def commit_all(cache, stream: Stream, lengths: Sequence[int], seed: int, rope=None, branch: str = "cond") -> None:
    """Commits one chunk after the other."""
    for i, num_tokens in enumerate(lengths):
        with cache.commit([QueryRange(stream, branch, num_tokens)]) as step:
            for layer in range(cache.spec.num_layers):
                q, k, v = random_qkv(cache, num_tokens, 10 * (seed + i) + layer)
                step.attend(layer, *(as_arriving(cache, step, x, rope) for x in (q, k)), v, rope)


def ragged_ranges(cache: PagedKVCache, rope=None) -> list[QueryRange]:
    """Streams with long, short and no history, of several lengths, two of them in a commit pass."""
    long = cache.open(Window(1, 2, positions="window"), 150)
    commit_all(cache, long, [150, 17, 129, 150], 100, rope)
    branched = cache.open(Window(0, 1), 150, branches=("cond", "uncond"))
    commit_all(cache, branched, [128, 1], 200, rope)
    commit_all(cache, branched, [150], 300, rope, branch="uncond")
    fresh = cache.open(Window(1, 1), 300)
    return [
        QueryRange(long),
        QueryRange(branched, "cond", 150, commit=True),
        QueryRange(fresh, "cond", 300),
        QueryRange(branched, "uncond", 17),
        QueryRange(fresh, "cond", 150),
        QueryRange(cache.fork(long), "cond", 1, commit=True),
    ]
