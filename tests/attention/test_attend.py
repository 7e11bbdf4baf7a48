"""`step.attend` against slow references, for everything that a step may consist of."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from tests.attention.reference import (
    TableRope,
    pairs_together,
    random_qkv,
)
from tests.attention.scenes import ROPES, TOLERANCE, attend, commit_all, make_cache, ragged_ranges, run


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4", "int2"])
@pytest.mark.parametrize("correction", ["off", "formula", "measured"])
@pytest.mark.parametrize(("layout", "keys_arrive"), [(None, "before_rotary"), ("half", "rotated")])
def test_every_codec_with_every_correction(codec, correction, layout, keys_arrive):
    cache = make_cache(codec, correction=correction, keys_arrive=keys_arrive)
    run(cache, ragged_ranges(cache, ROPES[layout]), 1, ROPES[layout])


@pytest.mark.parametrize("layout", [None, "half", "interleaved"])
@pytest.mark.parametrize("keys_arrive", ["before_rotary", "rotated"])
@pytest.mark.parametrize("group", [1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_every_rotary_convention_with_grouped_heads_and_every_dtype(layout, keys_arrive, group, dtype):
    codecs = StreamCodecs("int2", sink="int8", newest="bf16")
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
    cache = make_cache(StreamCodecs(codec, newest="bf16"), head_dim=8, group=2, scratch=scratch)
    rope = layout and TableRope(layout, 8)
    ranges = []
    for number, (window, history, num_tokens, commit) in enumerate(videos):
        stream = cache.open(window, 150)
        commit_all(cache, stream, history, 100 * number, rope)
        ranges.append(QueryRange(stream, "cond", num_tokens, commit=commit))
    run(cache, ranges, 1, rope)


CODECS = ("int2", "int4/int2", "int2-pair-s8-post", "token2-g16/int8", "hadamard4-g32/token4-g16", "bf16/int2-s8")


@pytest.mark.parametrize("mode", ["off", "formula", "variance", "measured"])
@pytest.mark.parametrize("layout", [None, "half", "interleaved"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_under_every_correction(codec, layout, mode):
    """The window slides, so that keys stored after rotary embedding are read at other positions."""
    cache = make_cache(StreamCodecs(codec, sink="int8-post", layers=((1, 1, "int4-post/bf16"),)), correction=mode)
    rope = ROPES[layout]
    stream = cache.open(Window(1, 2, positions="window"), 150)
    commit_all(cache, stream, [150, 17, 129, 150], 1, rope)
    run(cache, [QueryRange(stream), QueryRange(cache.open(Window(1, 2), 20))], 30, rope)
    run(cache, [QueryRange(stream, commit=True)], 31, rope)


@pytest.mark.parametrize("newest", ["bf16", "token8-g16", "int8-post"])
def test_a_chunk_may_change_between_codecs_that_store_keys_before_and_after_rotary_embedding(newest):
    for history in ("int4", "hadamard4-g16/int4"):
        cache, rope = make_cache(StreamCodecs(history, newest=newest), correction="variance"), ROPES["half"]
        stream = cache.open(Window(1, 2, positions="window"), 50)
        commit_all(cache, stream, [50] * 5, 1, rope)
        run(cache, [QueryRange(stream)], 30, rope)


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


def test_pairs_together_gives_the_order_of_stored_keys():
    """The reference's channel order is the one in which the package stores keys."""
    x = torch.arange(8.0).view(1, 1, 8)
    assert pairs_together(x, TableRope("interleaved", 8)).flatten().tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_layers_of_a_step_may_have_different_dtypes():
    cache, rope = make_cache(group=3), ROPES["half"]
    stream = cache.open(Window(1, 1), 40)
    commit_all(cache, stream, [40, 40], 1, rope)
    with cache.denoise([QueryRange(stream)]) as step:
        for layer, dtype in enumerate((torch.bfloat16, torch.float32)):
            out, expected = attend(cache, step, layer, 5, rope, dtype)
            torch.testing.assert_close(out, expected, rtol=0, atol=TOLERANCE[dtype] * float(expected.abs().max()))
