"""Heads with windows of their own attend to what their windows keep, at its right position, and to nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.errors import StateError
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.oracle import Keys, oracle_attention
from tests.attention.reference import TableRope, random_qkv
from tests.attention.scenes import commit_all, run

NUM_HEADS, GROUP, HEAD_DIM = 4, 2, 32
ROPE = TableRope("half", HEAD_DIM)
SINKS, RECENT = 1, 3
LOOK_BACK = [(0, 1, 1, 1, False), (0, 2, 2, 2, True), (1, 0, 3, 1, False), (1, 3, 3, 9, False)]
"""Layer 0: the window, the newest, two and the sink, the window; layer 1: three of the newest, all recent ones."""
VISIBLE = {
    (0, 0): [0, 3, 4, 5],
    (0, 1): [5],
    (0, 2): [0, 4, 5],
    (0, 3): [0, 3, 4, 5],
    (1, 0): [5],
    (1, 1): [5],
    (1, 2): [5],
    (1, 3): [3, 4, 5],
}
"""By (layer, KV head), chunks seen after six commits."""
LENGTHS = [40, 17, 30, 40, 25, 33]
STARTS = {"absolute": [0, 40, 57, 87, 127, 152, 185], "window": [0, None, None, 40, 80, 105, 138]}
"""Positions of the six chunks and of the current one."""


def make_cache(codecs: str, **settings) -> PagedKVCache:
    streams = StreamCodecs(codecs, look_back=LOOK_BACK, newest=settings.pop("newest", None))
    spec = CacheSpec(2, NUM_HEADS, HEAD_DIM, num_query_heads=NUM_HEADS * GROUP, codecs=streams, **settings)
    return PagedKVCache(spec, "8MiB")


def keys_at(start: int, k_nD: Tensor, v_nD: Tensor) -> Keys:
    cos, sin = ROPE.tables(start, len(k_nD))
    return Keys(k_nD, v_nD, cos=cos, sin=sin)


def rotated(start: int, q_TD: Tensor) -> Tensor:
    first, second = q_TD.double().chunk(2, dim=-1)
    cos, sin = (table.double() for table in ROPE.tables(start, len(q_TD)))
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


@pytest.mark.parametrize("positions", ["absolute", "window"])
@pytest.mark.parametrize("newest", [None, "fp32"])
def test_every_head_sees_its_own_window(positions, newest):
    """fp32 pages hold what was committed, so the oracle needs nothing of the cache."""
    cache = make_cache("fp32", newest=newest, correction="off")
    stream = cache.open(Window(SINKS, RECENT, positions), max(LENGTHS))
    history = [
        [random_qkv(cache, num_tokens, 10 * i + layer) for layer in (0, 1)] for i, num_tokens in enumerate(LENGTHS)
    ]
    for layers in history:
        with cache.commit([QueryRange(stream, num_tokens=len(layers[0][0]))]) as step:
            for layer, qkv in enumerate(layers):
                step.attend(layer, *qkv, ROPE)
    starts = STARTS[positions]
    with cache.denoise([QueryRange(stream, num_tokens=21)]) as step:
        assert step.plan.ranges[0].first_token == starts[-1]
        for layer in (0, 1):
            q, k, v = random_qkv(cache, 21, 900 + layer)
            out = step.attend(layer, q, k, v, ROPE)
            for head in range(NUM_HEADS):
                seen = [(starts[i], history[i][layer]) for i in VISIBLE[layer, head]] + [(starts[-1], (q, k, v))]
                sources = [keys_at(start, each[1][:, head], each[2][:, head]) for start, each in seen]
                for query_head in range(head * GROUP, (head + 1) * GROUP):
                    expected, _ = oracle_attention(rotated(starts[-1], q[:, query_head]), sources, cache.spec.scale)
                    torch.testing.assert_close(out[:, query_head].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("codecs", "newest"), [("int2", None), ("int4/int2", "int8"), ("token2-g16/int4", "bf16")])
def test_quantized_windows_by_head(codecs, newest):
    """Against the pages that are there; the test above says which these are."""
    cache = make_cache(codecs, newest=newest)
    stream = cache.open(Window(SINKS, RECENT, "window"), max(LENGTHS))
    commit_all(cache, stream, LENGTHS, 1, ROPE)
    twin = cache.fork(stream)
    for layer, head in VISIBLE:
        kept = [chunk.index for chunk in stream.chunks() if chunk.codecs.at(layer, head) is not None]
        assert kept == VISIBLE[layer, head]
    run(cache, [QueryRange(stream), QueryRange(twin, commit=True)], 30, ROPE)
    run(cache, [QueryRange(stream), QueryRange(twin)], 31, ROPE)


def test_steps_with_the_same_chunks_see_what_a_pin_shields_and_no_more():
    """Unpinning changes no chunk's id or position, only which heads hold it: no plan of before may be used again."""
    cache = make_cache("int4")
    stream = cache.open(Window(0, RECENT), 20)
    commit_all(cache, stream, [20, 20], 1, ROPE)
    cache.pin(stream, 1)
    commit_all(cache, stream, [20], 3, ROPE)
    twin = cache.fork(stream)
    cache.unpin(twin, 1)
    before = run(cache, [QueryRange(stream)], 30, ROPE)
    both = run(cache, [QueryRange(stream), QueryRange(twin)], 31, ROPE)
    cache.unpin(stream, 1)
    after = run(cache, [QueryRange(stream)], 30, ROPE)
    assert not torch.equal(before[0, :, GROUP : 2 * GROUP], after[0, :, GROUP : 2 * GROUP])  # KV head 1 of layer 0
    assert torch.equal(before[0, :, :GROUP], after[0, :, :GROUP])
    assert both.shape[1] == 40


def test_reading_what_a_head_has_let_go_of_is_refused():
    cache = make_cache("int2")
    stream = cache.open(Window(SINKS, RECENT), 20)
    commit_all(cache, stream, [20, 20, 20], 1, ROPE)
    with pytest.raises(StateError, match="KV heads 1 of layer 0 keep nothing of chunk 0"):
        cache.read(stream, 0, 0, heads=(1, 2))
    assert cache.read(stream, 1, 0, heads=(2, 3)).k.shape == (20, 2, HEAD_DIM)
    assert cache.read(stream, 2, 0).k.shape == (20, NUM_HEADS, HEAD_DIM)
