"""Exact admission: what is promised, what is refused, and that promises are kept."""

from __future__ import annotations

import itertools

import pytest

from pagedvid.cache.manager import CacheManager
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.errors import CapacityError, ConfigError, ShapeError
from pagedvid.geometry import RoleCodecs, Window, page_bytes, peak_pages
from tests.cache.bookkeeping import commit, make_manager
from tests.stream_simulation import table_pages

WINDOW = Window(sink_chunks=1, recent_chunks=2)
TOKENS = 100
"""One int2 page in a cache of one layer and one head, so a stream of WINDOW peaks at 4 pages."""


@pytest.mark.parametrize("chunk_tokens", [1, 17, 128, 129, 300, 880])
@pytest.mark.parametrize(
    "codecs",
    [
        RoleCodecs("fp32"),
        RoleCodecs("int2"),
        RoleCodecs("int2", sink="int8"),
        RoleCodecs("int2", newest="bf16"),
        RoleCodecs("int4", sink="bf16", newest="fp32"),
        RoleCodecs("bf16", newest="int2"),
    ],
    ids=str,
)
def test_predicted_pages_are_allocated_and_never_exceeded(codecs, chunk_tokens):
    """I8, I5: a pool of exactly the predicted size is enough, and at some time all of it is used."""
    for sinks, recents, max_commits in itertools.product((0, 2), (1, 3), (1, 2, 4, None)):
        window = Window(sinks, recents)
        spec = CacheSpec(2, 3, 8, codecs=codecs)
        peak = 2 * peak_pages(spec.shape, window, codecs, chunk_tokens, max_commits)
        manager = CacheManager(spec, peak * 2 * page_bytes(8), device="meta")
        stream = manager.open(window, chunk_tokens, branches=("cond", "uncond"), max_chunks=max_commits)
        assert manager.reserved_pages == peak == stream.peak_pages
        for _ in range(12 if max_commits is None else max_commits):
            commit(manager, *(QueryRange(stream, branch, commit=True) for branch in ("cond", "uncond")))
        assert manager.pool.peak_used_pages == peak


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4", "int2"])
@pytest.mark.parametrize("num_tokens", [1, 17, 128, 129, 300, 880])
def test_waste_is_less_than_one_page_per_table(num_tokens, codec):
    """I9; and the statistics count bytes as the geometry does."""
    manager = CacheManager(CacheSpec(2, 3, 8, codecs=RoleCodecs(codec)), "2MiB", device="meta")
    stream = manager.open(WINDOW, 880)
    commit(manager, QueryRange(stream, num_tokens=num_tokens, commit=True))
    stats = manager.stats()
    assert stats.pages_used == 6 * table_pages(num_tokens, codec)
    assert 0 <= stats.padding_waste_ratio * stats.pages_used < 6
    factors = 4 * 6 if codec.startswith("int") else 0
    assert stats.stored_bytes == stats.pages_used * stats.page_bytes + factors
    assert stats.page_bytes == 2 * 36 * 8
    assert stats.bf16_bytes == num_tokens * 6 * 8 * 2 * 2
    assert (stats.num_chunks, stats.num_streams, stats.num_shared_chunks) == (1, 1, 0)


def test_open_is_refused_with_the_numbers_and_takes_nothing():
    manager = make_manager(11)
    streams = [manager.open(WINDOW, TOKENS) for _ in range(2)]
    with pytest.raises(
        CapacityError, match=r"1 sink \+ 2 recent \+ 1 current chunks x 100 tokens x 1 branches .*needs 4 pages; "
        r"8 of 11 are reserved, 3 are left"
    ):  # fmt: skip
        manager.open(WINDOW, TOKENS)
    assert manager.reserved_pages == 8 and manager.streams == tuple(streams)
    manager.check()
    assert manager.fits(3) and not manager.fits(4)
    manager.open(Window(0, 2), TOKENS)
    manager.check()


def test_a_promise_counts_before_any_page_is_taken():
    manager = make_manager(8)
    manager.open(WINDOW, TOKENS), manager.open(WINDOW, TOKENS)
    assert manager.stats().pages_used == 0 and manager.stats().pages_reserved == 8
    with pytest.raises(CapacityError):
        manager.open(Window(0, 1), 1)


def test_a_short_video_reserves_only_what_it_can_hold():
    manager = make_manager(4)
    assert [manager.open(Window(1, 6), TOKENS, max_chunks=n).peak_pages for n in (0, 1, 3)] == [0, 1, 3]
    assert manager.reserved_pages == 4


def test_streams_may_differ_in_chunk_size_window_branches_and_codec():
    manager = make_manager(100)
    a = manager.open(Window(0, 1), 880, codecs=RoleCodecs("int8"))
    b = manager.open(Window(2, 2), 17, branches=("cond", "uncond"), codecs=RoleCodecs("int2", newest="fp32"))
    assert a.peak_pages == 2 * 28
    assert b.peak_pages == 2 * (1 + 1 + 1 + 2 + 1 + 2)  # two sinks, recent, newest, its int2 form, current
    for _ in range(6):
        commit(manager, a, *(QueryRange(b, branch, commit=True) for branch in b.branches))
    assert {chunk.codec for chunk in a.chunks()} == {"int8"}
    assert [chunk.codec for chunk in b.chunks()] == ["int2", "int2", "int2", "fp32"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"branches": ()}, "at least one"),
        ({"branches": ("a", "a")}, "no name twice"),
        ({"max_chunks": -1}, "max_chunks is -1; it must be 0 or more"),
    ],
)
def test_impossible_streams_are_refused(arguments, message):
    with pytest.raises(ShapeError, match=message):
        make_manager(10).open(**{"window": WINDOW, "chunk_tokens": TOKENS, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_query_heads": 5}, "num_query_heads is 5; it must be a multiple of num_kv_heads 2"),
        ({"num_query_heads": 0}, "num_query_heads is 0"),
        ({"correction": "on"}, "correction is 'on'; allowed are off, formula, measured"),
        ({"keys_arrive": "late"}, "keys_arrive is 'late'; allowed are before_rotary, rotated"),
        ({"num_kv_heads": 0}, "num_kv_heads is 0"),
    ],
)
def test_impossible_specs_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        CacheSpec(**{"num_layers": 1, "num_kv_heads": 2, "head_dim": 8, **arguments})


def test_memory_is_given_in_bytes_or_text():
    spec = CacheSpec(1, 1, 8)
    assert CacheManager(spec, "1MiB", device="meta").pool.num_pages == 2**20 // 576
    with pytest.raises(CapacityError, match="holds 0 pages"):
        CacheManager(spec, 575)
