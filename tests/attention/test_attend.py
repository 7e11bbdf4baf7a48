"""`step.attend` against slow references, for everything that a step may consist of."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pagedvid.attention.oracle import Keys, oracle_attention
from pagedvid.attention.step import Step
from pagedvid.attention.torch_backend import _row_parts
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.errors import ShapeError, StateError
from pagedvid.geometry import RoleCodecs, Window
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.reference import (
    TableRope,
    as_arriving,
    expected_attention,
    pairs_together,
    random_qkv,
    read_chunk,
    turn,
)

HEAD_DIM = 64
ROPES = {None: None, "half": TableRope("half", HEAD_DIM), "interleaved": TableRope("interleaved", HEAD_DIM)}
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def make_cache(
    codecs: RoleCodecs | str = "int2", *, group: int = 1, head_dim: int = HEAD_DIM, scratch: int | str = "8MiB", **spec
) -> PagedKVCache:
    """Two layers, two KV heads."""
    codecs = RoleCodecs(codecs) if isinstance(codecs, str) else codecs
    return PagedKVCache(
        CacheSpec(2, 2, head_dim, num_query_heads=2 * group, codecs=codecs, **spec), "16MiB", scratch=scratch
    )


def attend(cache, step, layer, seed, rope=None, dtype=torch.float32) -> tuple[Tensor, Tensor]:
    """One layer with random tensors: (what it gave, what it should give)."""
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


# ---------------------------------------------------------------------- against the pages' own numbers


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4", "int2"])
@pytest.mark.parametrize("correction", ["off", "formula", "measured"])
@pytest.mark.parametrize(("layout", "keys_arrive"), [(None, "before_rotary"), ("half", "rotated")])
def test_every_codec_with_every_correction(codec, correction, layout, keys_arrive):
    cache = make_cache(codec, correction=correction, keys_arrive=keys_arrive)
    run(cache, ragged_ranges(cache, ROPES[layout]), 1, ROPES[layout])


@pytest.mark.parametrize("layout", [None, "half", "interleaved"])
@pytest.mark.parametrize("keys_arrive", ["before_rotary", "rotated"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_every_rotary_habit_with_grouped_heads_and_both_types(layout, keys_arrive, group, dtype):
    codecs = RoleCodecs("int2", sink="int8", newest="bf16")
    cache = make_cache(codecs, group=group, keys_arrive=keys_arrive)
    run(cache, ragged_ranges(cache, ROPES[layout]), 1, ROPES[layout], dtype)


@pytest.mark.parametrize("head_dim", [8, 128])
def test_other_head_sizes(head_dim):
    cache = make_cache(head_dim=head_dim)
    rope = TableRope("interleaved", head_dim)
    run(cache, ragged_ranges(cache, rope), 1, rope)


def test_many_tokens():
    """880 and 1560 tokens, as real frames have: several pages, the last one partly filled."""
    cache = make_cache()
    stream = cache.open(Window(1, 1), 1560)
    commit_all(cache, stream, [1560, 880], 1, ROPES["half"])
    run(cache, [QueryRange(stream, num_tokens=880)], 5, ROPES["half"])


lengths = st.sampled_from([1, 2, 17, 31, 33, 64, 127, 128, 129, 150])
videos = st.tuples(
    st.builds(Window, st.integers(0, 2), st.integers(1, 2), st.sampled_from(["absolute", "window"])),
    st.lists(lengths, max_size=4),
    lengths,
    st.booleans(),
)


@settings(max_examples=25)
@given(
    st.lists(videos, min_size=1, max_size=4),
    st.sampled_from(["fp32", "int4", "int2"]),
    st.sampled_from([None, "half", "interleaved"]),
    st.sampled_from([1, 3000, 2**20]),
)
def test_any_mix_of_videos(videos, codec, layout, scratch):
    cache = make_cache(RoleCodecs(codec, newest="bf16"), head_dim=8, group=2, scratch=scratch)
    rope = layout and TableRope(layout, 8)
    ranges = []
    for number, (window, history, num_tokens, commit) in enumerate(videos):
        stream = cache.open(window, 150)
        commit_all(cache, stream, history, 100 * number, rope)
        ranges.append(QueryRange(stream, "cond", num_tokens, commit=commit))
    run(cache, ranges, 1, rope)


# ---------------------------------------------------------------------- against a dense cache


@pytest.mark.parametrize(("codec", "rounding"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("layout", [None, "half", "interleaved"])
@pytest.mark.parametrize("keys_arrive", ["before_rotary", "rotated"])
@pytest.mark.parametrize("group", [1, 3])
def test_raw_codecs_equal_a_dense_cache(codec, rounding, layout, keys_arrive, group):
    """I12: PyTorch's attention over the keys and values themselves (rounded to bf16), nothing read from pages.

    Keys that arrive rotated are un-rotated in float32 before rounding, which may tip a bf16 key to its neighbour.
    """
    rope = ROPES[layout]
    cache = make_cache(codec, group=group, keys_arrive=keys_arrive)
    stream = cache.open(Window(1, 2, positions="window"), 150)
    kept: list[tuple[Tensor, Tensor]] = []
    for i, num_tokens in enumerate([150, 17, 129, 150]):
        with cache.commit([QueryRange(stream, num_tokens=num_tokens)]) as step:
            for layer in range(2):
                q, k, v = random_qkv(cache, num_tokens, 10 * i + layer)
                step.attend(layer, *(as_arriving(cache, step, x, rope) for x in (q, k)), v, rope)
        kept.append((k.to(rounding).float(), v.to(rounding).float()))
    with cache.denoise([stream]) as step:
        q, k, v = random_qkv(cache, 150, 99)
        out = step.attend(1, *(as_arriving(cache, step, x, rope) for x in (q, k)), v, rope)
    dense, start = [], 0
    for keys, values in [kept[0], kept[2], kept[3], (k, v)]:
        dense.append((turn(keys, rope, start), values.double()))
        start += len(keys)
    keys, values = (torch.cat([pair[i] for pair in dense]).transpose(0, 1) for i in (0, 1))
    queries = turn(q, rope, start - 150).transpose(0, 1)
    expected = F.scaled_dot_product_attention(
        queries, keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    )
    tolerance = 2e-3 if codec == "bf16" and keys_arrive == "rotated" else 1e-5
    torch.testing.assert_close(out.double(), expected.transpose(0, 1), rtol=0, atol=tolerance)


# ---------------------------------------------------------------------- the correction


def test_bf16_and_fp32_pages_are_never_corrected():
    for codec in ("bf16", "fp32"):
        outs = []
        for correction in ("off", "formula", "measured"):
            cache = make_cache(codec, correction=correction)
            outs.append(run(cache, ragged_ranges(cache), 1))
        assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_the_correction_does_change_quantized_pages():
    outs = {}
    for correction in ("off", "formula", "measured"):
        cache = make_cache("int2", correction=correction)
        outs[correction] = run(cache, ragged_ranges(cache), 1)
    for a, b in (("off", "formula"), ("off", "measured"), ("formula", "measured")):
        assert float((outs[a] - outs[b]).abs().max()) > 100 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("layout", [None, "half"])
def test_one_correction_per_chunk_is_close_to_one_per_key(layout):
    """Cached values are 1, current ones 0, so the output is the cached mass; the oracle corrects each key by itself."""
    rope = ROPES[layout]
    cache = make_cache("int2", correction="formula")
    stream = cache.open(Window(1, 1), 300)
    for seed in (1, 2):
        with cache.commit([stream]) as step:
            for layer in range(2):
                q, k, v = random_qkv(cache, 300, 10 * seed + layer)
                step.attend(layer, q, k, torch.ones_like(v), rope)
    with cache.denoise([QueryRange(stream, num_tokens=60)]) as step:
        q, k, v = random_qkv(cache, 60, 50)
        mass = step.attend(0, q, k, torch.zeros_like(v), rope)[:, :, 0].double()
        (planned,) = step.plan.ranges
        q_turned, k_turned = (turn(x, rope, planned.first_token) for x in (q, k))
        for head in range(2):
            current = Keys(k_turned[:, head], torch.zeros(60, 64))
            corrected, uncorrected = [current], [current]
            for read in planned.reads:
                keys, values, steps = (x[head] for x in read_chunk(cache, read.chunk, 0))
                cos, sin = (None, None) if rope is None else rope.tables(read.first_token, 300)
                corrected.append(Keys(keys, values, steps, cos, sin))
                uncorrected.append(Keys(keys, values, None, cos, sin))
            exact, _ = oracle_attention(q_turned[:, head], corrected, cache.spec.scale)
            wrong, _ = oracle_attention(q_turned[:, head], uncorrected, cache.spec.scale)
            left, moved = mass[:, head] - exact[:, 0], wrong[:, 0] - exact[:, 0]
            assert float(moved.mean()) > 0.002
            assert float(left.abs().max()) < 0.1 * float(moved.max())
            assert float(left.abs().mean()) < 0.05 * float(moved.mean())


# ---------------------------------------------------------------------- several chunks in flight


@pytest.mark.parametrize("layout", [None, "half"])
def test_chunks_in_flight_see_their_own_lists(layout):
    rope = ROPES[layout]
    cache = make_cache()
    stream = cache.open(Window(1, 3), 150)
    other = cache.open(Window(1, 3), 150)
    commit_all(cache, stream, [150, 150, 17, 150], 1, rope)
    commit_all(cache, other, [150], 20, rope)
    run(
        cache,
        [
            QueryRange(stream, commit=True, visible=(0, 2, 3)),
            QueryRange(stream, visible=(3,), sees_ranges=(0,)),
            QueryRange(other),
            QueryRange(stream, num_tokens=20, visible=(), sees_ranges=(0, 1)),
            QueryRange(stream, visible=(3, 0), sees_ranges=(3, 1)),
        ],
        30,
        rope,
    )


def test_a_range_that_sees_nothing_else_attends_to_itself():
    cache = make_cache()
    stream = cache.open(Window(1, 1), 20)
    commit_all(cache, stream, [20], 1)
    with cache.denoise([QueryRange(stream, visible=())]) as step:
        q, k, v = random_qkv(cache, 20, 5)
        out = step.attend(0, q, k, v)
    expected = F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, k, v))).transpose(0, 1)
    torch.testing.assert_close(out, expected)


# ---------------------------------------------------------------------- what must not matter


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("scratch", [1, 40_000, 200_000])
def test_the_size_of_the_scratch_does_not_matter(scratch, dtype):
    """One byte: one head of one range at a time. 64 MiB: everything in one call."""
    outs = []
    for size in (scratch, "64MiB"):
        cache = make_cache(group=3, scratch=size)
        outs.append(run(cache, ragged_ranges(cache, ROPES["half"]), 1, ROPES["half"], dtype))
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("num_threads", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_number_of_threads_does_not_matter(dtype, num_threads, monkeypatch):
    """The rows of one large head are cut into one part per thread."""
    cache = make_cache(scratch=1)
    stream = cache.open(Window(1, 1), 2340)
    commit_all(cache, stream, [2340], 1)
    q, k, v = random_qkv(cache, 2340, 5, dtype)
    outs = []
    for number in (1, num_threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        with cache.denoise([stream]) as step:
            outs.append(step.attend(0, q, k, v))
    assert _row_parts(torch.empty(1, 1, 2340, 64), num_threads) == num_threads
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=2e-6 if dtype == torch.float32 else 8e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_what_runs_beside_a_stream_does_not_matter(dtype):
    cache = make_cache("int2", correction="formula")
    ranges = [QueryRange(r.stream, r.branch, r.num_tokens) for r in ragged_ranges(cache)]
    q, k, v = random_qkv(cache, sum(r.num_tokens or r.stream.chunk_tokens for r in ranges), 77, dtype)
    q[200:] *= 8  # outlier channels in some of the streams
    with cache.denoise(ranges) as step:
        together = step.attend(0, q, k, v)
        bounds = [(r.start, r.stop) for r in step.plan.ranges]
    for asked, (start, stop) in zip(ranges, bounds, strict=True):
        with cache.denoise([asked]) as step:
            alone = step.attend(0, q[start:stop], k[start:stop], v[start:stop])
        torch.testing.assert_close(alone, together[start:stop], rtol=0, atol=2e-6 if dtype == torch.float32 else 8e-3)


def test_the_order_of_pages_in_the_pool_does_not_matter():
    """I12: the same video in a fresh pool and in one whose free pages are shuffled."""
    outs = []
    for is_shuffled in (False, True):
        cache = make_cache()
        if is_shuffled:
            before = [cache.open(Window(0, 1), n) for n in (150, 129, 20)]
            for i in (0, 1, 2, 1, 0):
                run(cache, [QueryRange(before[i], commit=True)], i)
            cache.release(before[1])
        stream = cache.open(Window(1, 2), 150)
        commit_all(cache, stream, [150, 150, 150, 150], 40)
        outs.append(run(cache, [QueryRange(stream)], 60))
    assert torch.equal(outs[0], outs[1])


def test_strides_of_the_inputs_do_not_matter_and_inputs_are_not_changed():
    """Queries, keys and values are often views of one fused projection."""
    rope = ROPES["interleaved"]
    fused = torch.randn(40, 3, 2, 64, generator=torch.Generator().manual_seed(0))
    dense = [x.clone() for x in fused.unbind(1)]
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in dense]
    outs, written = [], []
    for inputs in (dense, fused.unbind(1), heads_first):
        cache = make_cache()
        stream = cache.open(Window(1, 1), 40)
        commit_all(cache, stream, [40], 1, rope)
        with cache.commit([stream]) as step:
            outs += [step.attend(layer, *inputs, rope) for layer in range(2)]
        written.append(cache.pool.page_bytes_of(list(stream.chunks())[-1].pages))
        assert all(torch.equal(x, y) for x, y in zip(inputs, dense, strict=True))
        torch.testing.assert_close(outs[-2:], outs[:2])
        assert all(torch.equal(x, y) for x, y in zip(written[-1], written[0], strict=True))


# ---------------------------------------------------------------------- errors


def qkv(num_tokens: int = 20, query_heads: int = 6, kv_heads: int = 2, head_dim: int = 64, dtype=torch.float32):
    return [torch.zeros(num_tokens, heads, head_dim, dtype=dtype) for heads in (query_heads, kv_heads, kv_heads)]


BAD_CALLS = {
    "layer": (2, qkv(), "layer 2 does not exist; the cache has layers 0 to 1"),
    "negative layer": (-1, qkv(), "layer -1 does not exist"),
    "tokens": (0, qkv(num_tokens=19), r"q has shape \(19, 6, 64\); .* are \(20, 6, 64\)"),
    "query heads": (0, qkv(query_heads=2), r"q has shape \(20, 2, 64\); .* are \(20, 6, 64\)"),
    "KV heads": (0, qkv(kv_heads=6), r"k has shape \(20, 6, 64\); .* are \(20, 2, 64\)"),
    "head_dim": (0, qkv(head_dim=32), r"q has shape \(20, 6, 32\)"),
    "type": (0, qkv(dtype=torch.float16), "q is torch.float16; .* share one of torch.float32, torch.bfloat16"),
    "mixed types": (0, [*qkv()[:2], qkv(dtype=torch.bfloat16)[2]], "v is torch.bfloat16"),
    "device": (0, [x.to("meta") for x in qkv()], "q is on meta, the pool on cpu; move one of them"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_tensors_that_do_not_fit_are_refused(name):
    layer, tensors, message = BAD_CALLS[name]
    cache = make_cache(group=3)
    stream = cache.open(Window(1, 1), 20)
    with pytest.raises(ShapeError, match=message), cache.commit([stream]) as step:
        step.attend(layer, *tensors)
    assert list(stream.chunks()) == []


def test_rotary_tables_that_do_not_fit_are_refused():
    cache = make_cache(group=3)
    with (
        pytest.raises(ShapeError, match="rotary tables have 16 columns; head_dim 64 needs 32"),
        cache.denoise([cache.open(Window(1, 1), 20)]) as step,
    ):
        step.attend(0, *qkv(), TableRope("half", 32))


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_cannot_be_used_after_it_has_ended(fails):
    cache = make_cache(group=3, debug_checks=True)
    stream = cache.open(Window(1, 1), 20)
    kept: list[Step] = []

    def begin() -> None:
        with cache.commit([stream]) as step:
            kept.append(step)
            step.attend(0, *qkv())
            if fails:
                raise KeyError
            step.attend(1, *qkv())

    if fails:
        with pytest.raises(KeyError):
            begin()
    else:
        begin()
    with pytest.raises(StateError, match="this step has ended"):
        kept[0].attend(1, *qkv())


def test_pairs_together_is_its_own_check():
    """The reference's channel order is the one in which the package stores keys."""
    x = torch.arange(8.0).view(1, 1, 8)
    assert pairs_together(x, TableRope("interleaved", 8)).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]
