"""Admission, sharing, pins, transactions: the promises of the manager one by one."""

from __future__ import annotations

import itertools

import pytest

from pagedvid.cache.manager import CacheManager
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.errors import CapacityError, ConfigError, ShapeError, StateError
from pagedvid.geometry import RoleCodecs, Window, page_bytes, peak_pages
from tests.cache.bookkeeping import commit, live, make_manager, mark_written
from tests.stream_simulation import table_pages

WINDOW = Window(sink_chunks=1, recent_chunks=2)
TOKENS = 100
"""One int2 page in a cache of one layer and one head, so a stream of WINDOW peaks at 4 pages."""


# ---------------------------------------------------------------------- admission


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


# ---------------------------------------------------------------------- forks


def test_a_fork_shares_chunks_and_reserves_its_peak_less_the_sinks():
    manager = make_manager(7)
    stream = manager.open(WINDOW, TOKENS)
    for _ in range(4):
        commit(manager, stream)
    twin = manager.fork(stream)
    manager.check()
    assert manager.reserved_pages == 7
    assert list(twin.chunks()) == list(stream.chunks())
    assert manager.stats().num_shared_chunks == 3 and manager.stats().pages_used == 3


def test_a_fork_is_refused_with_the_numbers():
    manager = make_manager(6)
    stream = manager.open(WINDOW, TOKENS)
    commit(manager, stream)
    with pytest.raises(CapacityError, match=r"a fork of stream 0 \(1 pages of its sinks are shared\) needs 3 pages"):
        manager.fork(stream)
    manager.check()


@pytest.mark.parametrize("released_first", [0, 1])
def test_both_sides_of_a_fork_go_on_alone(released_first):
    """I7: after a fork each side commits and slides by itself, and releasing one leaves the other's chunks."""
    manager = make_manager(7)
    a = manager.open(WINDOW, TOKENS)
    for _ in range(3):
        commit(manager, a)
    b = manager.fork(a)
    sink = a.history("cond").chunks[0]
    for _ in range(4):
        commit(manager, b)
    assert (live(a), live(b)) == ([0, 1, 2], [0, 5, 6])
    gone, left = ((a, b), (b, a))[released_first]
    before = list(left.chunks())
    manager.release(gone)
    manager.check()
    assert list(left.chunks()) == before and before[0] is sink
    assert manager.reserved_pages == 4 and manager.pool.num_used_pages == 3
    commit(manager, left)
    manager.release(left)
    assert manager.pool.num_free_pages == 7 and manager.reserved_pages == 0


def test_many_forks_of_a_fork_count_the_sink_once():
    manager = make_manager(1 + 3 * 10)
    streams = [manager.open(WINDOW, TOKENS)]
    commit(manager, streams[0])
    for _ in range(9):
        streams.append(manager.fork(streams[-1]))
    assert manager.reserved_pages == 31
    for _ in range(5):
        commit(manager, *streams)
    assert manager.pool.num_used_pages == 1 + 2 * 10


def test_a_fork_keeps_pins_and_the_end_of_the_video():
    manager = make_manager(20)
    stream = manager.open(WINDOW, TOKENS, max_chunks=6)
    for _ in range(3):
        commit(manager, stream)
    manager.pin(stream, 1)
    twin = manager.fork(stream)
    for _ in range(3):
        commit(manager, twin)
    assert live(twin) == [0, 1, 4, 5]
    with pytest.raises(StateError, match="max_chunks=6"):
        commit(manager, twin)


def test_replacing_a_shared_sink_needs_its_own_pages():
    """The old sink stays with the fork, so the budget grows: refused when full, possible with one page more."""
    for num_pages, is_possible in ((7, False), (8, True)):
        manager = make_manager(num_pages)
        a = manager.open(WINDOW, TOKENS)
        commit(manager, a)
        b = manager.fork(a)
        ask = QueryRange(a, commit=True, replaces=0)
        if not is_possible:
            with pytest.raises(CapacityError, match=r"replacing a chunk .* needs 1 pages; 7 of 7 are reserved"):
                commit(manager, ask)
        else:
            commit(manager, ask)
            assert next(a.chunks()) is not next(b.chunks())
        for _ in range(4):
            commit(manager, a, b)


def test_replacing_at_the_peak_borrows_pages_until_the_step_ends():
    manager = make_manager(5)
    stream = manager.open(Window(0, 1), 2 * 128, max_chunks=1)  # peaks at 2 pages
    commit(manager, stream)
    other = manager.open(Window(0, 1), 1, max_chunks=1)
    with manager.transaction([QueryRange(stream, commit=True, replaces=0)]) as plan:
        assert manager.reserved_pages == 5
        with pytest.raises(CapacityError):
            manager.open(Window(0, 1), 1)
        mark_written(manager, plan)
    assert manager.reserved_pages == 3
    manager.open(Window(0, 1), 1, max_chunks=1)
    with pytest.raises(CapacityError, match="replacing a chunk while the old one is still in use needs 2 pages"):
        commit(manager, QueryRange(stream, commit=True, replaces=0))
    commit(manager, other)


# ---------------------------------------------------------------------- pins


def test_a_pin_outlives_the_window_and_unpinning_drops_it():
    manager = make_manager(5)
    stream = manager.open(WINDOW, TOKENS)
    for _ in range(3):
        commit(manager, stream)
    manager.pin(stream, 2)
    manager.check()
    assert manager.reserved_pages == 5
    for _ in range(4):
        commit(manager, stream)
    assert live(stream) == [0, 2, 5, 6]
    manager.unpin(stream, 2)
    manager.check()
    assert live(stream) == [0, 5, 6] and manager.reserved_pages == 4


def test_unpinning_inside_the_window_keeps_the_chunk():
    manager = make_manager(5)
    stream = manager.open(WINDOW, TOKENS)
    commit(manager, stream), commit(manager, stream)
    manager.pin(stream, 1)
    manager.unpin(stream, 1)
    assert live(stream) == [0, 1]
    manager.check()


def test_a_pin_without_room_is_refused():
    manager = make_manager(4)
    stream = manager.open(WINDOW, TOKENS)
    commit(manager, stream), commit(manager, stream)
    with pytest.raises(CapacityError, match="pinning chunk 1 of stream 0 needs 1 pages; 4 of 4 are reserved"):
        manager.pin(stream, 1)
    manager.check()


def test_a_second_pin_of_a_shared_chunk_is_free():
    manager = make_manager(4 + 3 + 1)
    a = manager.open(WINDOW, TOKENS)
    commit(manager, a), commit(manager, a)
    b = manager.fork(a)
    manager.pin(a, 1)
    assert manager.reserved_pages == 8
    manager.pin(b, 1)
    manager.check()
    for _ in range(4):
        commit(manager, a, b)
    assert live(a) == live(b) == [0, 1, 4, 5]
    manager.unpin(a, 1)
    manager.check()
    assert manager.reserved_pages == 8
    manager.unpin(b, 1)
    manager.check()
    assert manager.reserved_pages == 7


def test_a_pinned_newest_chunk_takes_its_final_codec_with_the_next_commit():
    manager = make_manager(60, RoleCodecs("int2", newest="bf16"))
    stream = manager.open(Window(0, 1), TOKENS)
    commit(manager, stream)
    manager.pin(stream, 0)
    commit(manager, stream)
    assert [(chunk.index, chunk.codec) for chunk in stream.chunks()] == [(0, "int2"), (1, "bf16")]
    assert manager.reserved_pages == 12 + 1


@pytest.mark.parametrize(
    ("index", "message"),
    [(0, "already kept for good"), (1, r"chunks \[1\] are not kept"), (3, "already kept for good")],
    ids=["sink", "gone", "pinned"],
)
def test_pins_that_make_no_sense(index, message):
    manager = make_manager(20)
    stream = manager.open(WINDOW, TOKENS)
    for _ in range(4):
        commit(manager, stream)
    manager.pin(stream, 3)
    with pytest.raises(StateError, match=message):
        manager.pin(stream, index)
    with pytest.raises(StateError, match=r"chunk 2 of stream 0 is not pinned; pinned are \[3\]"):
        manager.unpin(stream, 2)
    with pytest.raises(StateError, match="no branch 'uncond'"):
        manager.pin(stream, 2, "uncond")


# ---------------------------------------------------------------------- transactions


def test_a_commit_is_published_when_the_block_ends():
    manager = make_manager(8)
    a, b = manager.open(WINDOW, TOKENS), manager.open(WINDOW, TOKENS)
    with manager.transaction([QueryRange(a, commit=True), QueryRange(b, commit=True)]) as plan:
        assert manager.pool.num_used_pages == 2
        assert live(a) == live(b) == []
        manager.check()
        mark_written(manager, plan)
    assert live(a) == live(b) == [0]


class Broken(BaseException):
    """Like KeyboardInterrupt: no `Exception`."""


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, ValueError])
def test_any_exception_rolls_everything_back(error):
    manager = make_manager(60, RoleCodecs("int2", newest="bf16"))
    a, b = manager.open(WINDOW, TOKENS), manager.open(WINDOW, TOKENS)
    commit(manager, a, b)
    used, chunks = manager.pool.num_used_pages, [*a.chunks(), *b.chunks()]
    ranges = [QueryRange(a, commit=True), QueryRange(b, commit=True)]
    with pytest.raises(error), manager.transaction(ranges) as plan:
        assert manager.pool.num_used_pages == used + 2 * (6 + 1)
        mark_written(manager, plan)
        raise error
    assert manager.pool.num_used_pages == used and [*a.chunks(), *b.chunks()] == chunks
    manager.check()
    commit(manager, a, b)


def test_a_commit_that_forgets_a_layer_publishes_nothing():
    manager = make_manager(12, num_layers=3)
    stream = manager.open(WINDOW, TOKENS)
    with (
        pytest.raises(StateError, match=r"chunk 0 ended before layers \[0, 2\] were attended.*Nothing was published"),
        manager.transaction([QueryRange(stream, commit=True)]) as plan,
    ):
        plan.pending[0].layers_written.add(1)
    assert live(stream) == [] and manager.pool.num_free_pages == 12
    manager.check()


def test_a_busy_stream_refuses_everything_until_its_step_ends():
    manager = make_manager(20)
    stream, other = manager.open(WINDOW, TOKENS), manager.open(WINDOW, TOKENS)
    commit(manager, stream), commit(manager, stream)

    def nested() -> None:
        with manager.transaction([QueryRange(stream)]):
            raise AssertionError("a nested step was opened")

    with manager.transaction([QueryRange(stream)]):
        for forbidden in (
            lambda: manager.release(stream),
            lambda: manager.fork(stream),
            lambda: manager.pin(stream, 1),
            lambda: manager.unpin(stream, 1),
            nested,
        ):
            with pytest.raises(StateError, match="inside an open step; end the step first"):
                forbidden()
        commit(manager, other)  # another stream is free
    manager.pin(stream, 1)
    manager.check()


def test_a_released_or_foreign_stream_is_refused():
    manager, elsewhere = make_manager(20), make_manager(20)
    stream, foreign = manager.open(WINDOW, TOKENS), elsewhere.open(WINDOW, TOKENS)
    commit(manager, stream)
    manager.release(stream)
    for bad in (stream, foreign):
        for forbidden in (manager.release, manager.fork, lambda s: manager.pin(s, 0), lambda s: commit(manager, s)):
            with pytest.raises(StateError, match="was released or belongs to another cache"):
                forbidden(bad)
    assert stream.is_released and list(stream.chunks()) == []


def test_after_all_releases_the_pool_is_as_new():
    """I10."""
    manager = make_manager(100, RoleCodecs("int4", sink="int8", newest="bf16"))
    streams = [manager.open(Window(1, n), TOKENS) for n in (1, 2)]
    for i in range(5):
        commit(manager, *streams)
        if i == 2:
            streams.append(manager.fork(streams[1]))
            manager.pin(streams[1], 2)
    for stream in streams:
        manager.release(stream)
        manager.check()
    assert sorted(manager.pool.free_ids) == list(range(100))
    stats = manager.stats()
    assert (stats.pages_used, stats.pages_reserved, stats.num_chunks, stats.num_streams) == (0, 0, 0, 0)
    assert stats.padding_waste_ratio == 0.0 and stats.stored_bytes == 0
    assert stats.pages_peak == manager.pool.peak_used_pages > 0
