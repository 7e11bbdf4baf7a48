"""`PagedKVCache.read` and `Step.store`: what a host that attends by itself needs of a cache."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid import CacheSpec, ConfigError, PagedKVCache, ShapeError, StateError, Stream, StreamCodecs, Window
from pagedvid.rotary.tables import rotate, to_half_layout
from tests.attention.reference import TableRope

NUM_LAYERS, NUM_HEADS, HEAD_DIM, NUM_TOKENS = 2, 2, 16, 40
LAYOUTS = {None: None, "half": TableRope("half", HEAD_DIM), "interleaved": TableRope("interleaved", HEAD_DIM)}


def make_cache(codec: str = "fp32", **spec) -> PagedKVCache:
    return PagedKVCache(CacheSpec(NUM_LAYERS, NUM_HEADS, HEAD_DIM, codecs=StreamCodecs(codec), **spec), "1MiB")


def draw(chunk: int, layer: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [n, H, D]."""
    generator = torch.Generator().manual_seed(10 * chunk + layer)
    return torch.randn(3, NUM_TOKENS, NUM_HEADS, HEAD_DIM, generator=generator).unbind()


def commit(cache: PagedKVCache, stream: Stream, chunk: int, rope=None, *, attends: bool = True, queries: bool = True):
    with cache.commit([stream]) as step:
        for layer in range(NUM_LAYERS):
            q, k, v = draw(chunk, layer)
            if attends:
                step.attend(layer, q, k, v, rope)
            else:
                step.store(layer, k, v, rope, q_THD=q if queries else None)


def rotated(k_nHD: Tensor, rope: TableRope | None, position: int) -> Tensor:
    """Keys in half layout at their positions."""
    if rope is None:
        return k_nHD
    cos, sin = (table.unsqueeze(1) for table in rope.tables(position, len(k_nHD)))
    return rotate(to_half_layout(k_nHD, rope.layout), cos, sin)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("positions", ["absolute", "window"])
def test_what_was_committed_is_read(layout, positions):
    """Keys before rotary embedding by default; rotated, at the positions that their chunks have now."""
    cache, rope = make_cache(), LAYOUTS[layout]
    stream = cache.open(Window(1, 1, positions), NUM_TOKENS)
    for chunk in range(4):
        commit(cache, stream, chunk, rope)
    now = {0: 0, 3: 3 * NUM_TOKENS if positions == "absolute" else NUM_TOKENS}
    for chunk, position in now.items():
        for layer in range(NUM_LAYERS):
            _, k, v = draw(chunk, layer)
            stored = cache.read(stream, chunk, layer)
            torch.testing.assert_close(stored.k, k, rtol=0, atol=0)
            torch.testing.assert_close(stored.v, v, rtol=0, atol=0)
            assert stored.quant_errors == ()
            k_now = cache.read(stream, chunk, layer, rotated=True).k
            k_now = k_now if rope is None else to_half_layout(k_now, rope.layout)
            torch.testing.assert_close(k_now, rotated(k, rope, position), rtol=0, atol=1e-6)


def test_keys_that_arrive_rotated_come_back_rotated():
    cache, rope = make_cache(keys_arrive="rotated"), LAYOUTS["interleaved"]
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    commit(cache, stream, 0, rope)
    _, k, _ = draw(0, 1)
    torch.testing.assert_close(cache.read(stream, 0, 1).k, k, rtol=0, atol=1e-5)
    back = rotated(cache.read(stream, 0, 1, rotated=False).k, rope, 0)
    torch.testing.assert_close(back, to_half_layout(k, "interleaved"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("mode", ["off", "formula", "measured", "variance"])
def test_the_quant_error_is_there_where_something_is_corrected(mode):
    cache = make_cache("int2", correction=mode)
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    commit(cache, stream, 0)
    errors = cache.read(stream, 0, 0).quant_errors
    assert [heads for heads, _ in errors] == ([] if mode == "off" else [tuple(range(NUM_HEADS))])
    for _, error in errors:
        change = next(iter(stream.chunks())).variance
        assert (error.alpha is None) == (mode != "measured") and (change is None) == (mode != "variance")
        assert change is None or torch.equal(error.square, 12 * change[0].float())


@pytest.mark.parametrize("codec", ["int2", "int4/int2", "bf16"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_storing_without_attending_stores_the_same(codec, layout):
    """Bytes and measured factors, a window that slides included."""
    caches = [make_cache(codec), make_cache(codec)]
    streams = [cache.open(Window(1, 2), NUM_TOKENS) for cache in caches]
    for chunk in range(5):
        for cache, stream, attends in zip(caches, streams, (True, False), strict=True):
            commit(cache, stream, chunk, LAYOUTS[layout], attends=attends)
    for ours, theirs in zip(*(stream.chunks() for stream in streams), strict=True):
        assert torch.equal(caches[0].pool.read(ours.table.ids), caches[1].pool.read(theirs.table.ids))
        assert (ours.alpha is None) == (codec == "bf16")
        if ours.alpha is not None:
            assert torch.equal(ours.alpha, theirs.alpha)
    caches[1].check()


def test_a_step_that_reads_does_not_store():
    cache = make_cache()
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    _, k, v = draw(0, 0)
    with cache.denoise([stream]) as step, pytest.raises(StateError, match="this step only reads; open a commit pass"):
        step.store(0, k, v)
    with pytest.raises(StateError, match="this step has ended"):
        step.store(0, k, v)


def test_queries_are_needed_where_the_correction_is_measured():
    cache = make_cache("int2")
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    with pytest.raises(ConfigError, match=r"fits a factor to queries; give `q_THD`, or choose \"formula\""):
        commit(cache, stream, 0, attends=False, queries=False)
    assert stream.num_committed == 0
    formula = make_cache("int2", correction="formula")
    stream = formula.open(Window(1, 2), NUM_TOKENS)
    commit(formula, stream, 0, attends=False, queries=False)
    assert stream.num_committed == 1


def test_a_layer_that_was_not_stored_rolls_the_commit_back():
    cache = make_cache()
    stream = cache.open(Window(1, 2), NUM_TOKENS)
    with pytest.raises(StateError, match=r"before layers \[1\] were attended"), cache.commit([stream]) as step:
        step.store(0, *draw(0, 0)[1:])
    with pytest.raises(ShapeError, match=r"k has shape \(39, 2, 16\)"), cache.commit([stream]) as step:
        step.store(0, draw(0, 0)[1][1:], draw(0, 0)[2])
    assert stream.num_committed == 0 and cache.stats().pages_used == 0
    cache.check()


def test_what_cannot_be_read_is_said():
    cache, other = make_cache(), make_cache()
    stream = cache.open(Window(1, 1), NUM_TOKENS)
    for chunk in range(3):
        commit(cache, stream, chunk)
    with pytest.raises(StateError, match=r"chunks \[1\] are not kept; the live chunks are \[0, 2\]"):
        cache.read(stream, 1, 0)
    with pytest.raises(ShapeError, match="layer 2 does not exist; the cache has layers 0 to 1"):
        cache.read(stream, 0, 2)
    with pytest.raises(StateError, match="has no branch 'uncond'"):
        cache.read(stream, 0, 0, "uncond")
    with pytest.raises(StateError, match="belongs to another cache"):
        other.read(stream, 0, 0)
    cache.release(stream)
    with pytest.raises(StateError, match="was released"):
        cache.read(stream, 0, 0)
