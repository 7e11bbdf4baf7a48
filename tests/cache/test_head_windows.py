"""Heads that keep less than the window: what is freed when, what forks share, and what sinks and pins keep."""

from __future__ import annotations

import time

import pytest

from pagedvid.cache.chunk import Chunk
from pagedvid.cache.head_windows import HeadWindow, read_look_backs
from pagedvid.cache.manager import CacheManager
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import peak_pages
from pagedvid.cache.window import Window
from pagedvid.errors import CapacityError, ConfigError
from tests.cache.bookkeeping import commit, live, make_manager

WINDOW = Window(sink_chunks=1, recent_chunks=3)
TOKENS = 100
"""Two int2 pages for every head: keys, values."""
LOOK_BACK = [(0, 1, 1, 1, False), (0, 2, 2, 2, True)]
"""Of three heads in one layer, the first follows the window."""


def manager_of(num_pages: int, look_back=LOOK_BACK, **codecs) -> CacheManager:
    return make_manager(num_pages, StreamCodecs("int2", look_back=look_back, **codecs), num_kv_heads=3)


def heads_of(chunk: Chunk) -> list[int]:
    """Heads of the first layer that keep the chunk, by its page table."""
    lengths = (chunk.table.indptr[1:] - chunk.table.indptr[:-1]).tolist()
    num_heads = len(lengths) // 2
    assert lengths[:num_heads] == lengths[num_heads:]  # keys and values
    assert [chunk.codecs.at(0, head) is not None for head in range(num_heads)] == [n > 0 for n in lengths[:num_heads]]
    return [head for head in range(num_heads) if lengths[head]]


def kept(stream: Stream) -> dict[int, list[int]]:
    return {chunk.index: heads_of(chunk) for chunk in stream.chunks()}


def committed(manager: CacheManager, num_chunks: int, window: Window = WINDOW) -> Stream:
    stream = manager.open(window, TOKENS)
    for _ in range(num_chunks):
        commit(manager, stream)
    return stream


# ------------------------------------------------------------------ the setting


def test_equal_look_backs_are_equal_however_they_are_written():
    whole = StreamCodecs(look_back=[(1, 0, 3, 2, True), (0, 1, 1, 1, False)])
    parts = StreamCodecs(
        look_back=[(0, 1, 2, 5, True), (1, 2, 3, 2, True), (1, 0, 1, 2, True), (0, 1, 1, 1, False), (0, 2, 2, 3, True)]
    )
    assert whole.look_back == ((0, 1, 1, 1, False), (1, 0, 3, 2, True))
    assert parts.look_back == ((0, 1, 1, 1, False), (0, 2, 2, 3, True), (1, 0, 3, 2, True))
    again = StreamCodecs(look_back=parts.look_back)
    assert again == parts != whole and hash(again) == hash(parts)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ([(0, 1, 1, 1)], r"look_back is \[\(0, 1, 1, 1\)\]; write \[\("),
        (3, "look_back is 3"),
        ([(0, 1, 1, 0, True)], "recent_chunks of a look_back is 0; it must be at least 1"),
        ([(0, 1, 0, 1, True)], "last head of a look_back is 0; it must be at least 1"),
        ([(-1, 1, 1, 1, True)], "layer of a look_back is -1"),
        ([(0, 1, 1, 1, 1)], "keeps_sinks of a look_back is 1, of type int; give True or False"),
    ],
)
def test_impossible_look_backs_are_refused(written, message):
    with pytest.raises(ConfigError, match=message):
        read_look_backs(written)


def test_look_backs_of_heads_that_do_not_exist_are_refused():
    for look_back in ([(2, 0, 0, 1, True)], [(0, 2, 3, 1, True)]):
        with pytest.raises(ConfigError, match="codecs or a look_back are given for layer"):
            CacheSpec(2, 3, 8, codecs=StreamCodecs(look_back=look_back))


def test_what_a_window_of_a_head_keeps():
    sliding = HeadWindow(2, keeps_sinks=False)
    assert [sliding.keeps(5, age, WINDOW) for age in range(4)] == [True, True, False, False]
    assert [sliding.keeps(0, age, WINDOW) for age in range(4)] == [True, True, False, False]
    assert all(HeadWindow(1, keeps_sinks=True).keeps(0, age, WINDOW) for age in range(9))
    assert not HeadWindow(9, keeps_sinks=False).keeps(0, 3, WINDOW)  # never more than the stream's window


def test_thinned_codecs_are_one_object_whatever_the_way_to_them():
    codecs = StreamCodecs("int2", look_back=LOOK_BACK)
    full = codecs.stored(5, 0, WINDOW)
    at_once, step_by_step = (
        codecs.thinned(full, 5, 2, WINDOW),
        codecs.thinned(codecs.stored(5, 1, WINDOW), 5, 2, WINDOW),
    )
    assert at_once is step_by_step and at_once != full
    assert codecs.thinned(at_once, 5, 2, WINDOW) is at_once
    assert codecs.thinned(full, 5, 0, WINDOW) is full


def test_large_models_with_a_window_of_a_billion_chunks_take_no_time():
    look_back = [(layer, h, h, 1 + (7 * layer + 3 * h) % 19, h % 3 > 0) for layer in range(40) for h in range(40)]
    codecs = StreamCodecs("int2", newest="bf16", look_back=look_back)
    started = time.perf_counter()
    shape, window = KVShape(40, 40, 128), Window(3, 10**9)
    peak = peak_pages(shape, window, codecs, 4680)
    assert time.perf_counter() - started < 10
    int2, bf16 = 2 * 37, 2 * 260
    sinks = sum(3 if keeps_sinks else 0 for *_, keeps_sinks in look_back)
    older = sum(recent_chunks - 1 for *_, recent_chunks, _ in look_back)  # all but the newest
    again = sum(recent_chunks > 1 for *_, recent_chunks, _ in look_back)  # the newest in its final codec
    assert peak == int2 * (sinks + older + again) + 2 * bf16 * 1600


# ------------------------------------------------------------------ one stream


def test_heads_let_go_one_by_one_and_their_pages_are_free_at_once():
    manager = manager_of(100)
    stream = committed(manager, 2)
    assert kept(stream) == {0: [0, 2], 1: [0, 1, 2]}
    assert manager.pool.num_used_pages == 2 * 5
    for _ in range(4):
        commit(manager, stream)
    assert kept(stream) == {0: [0, 2], 3: [0], 4: [0, 2], 5: [0, 1, 2]}
    stats = manager.stats()
    assert stats.pages_used == 2 * 8 and stats.num_chunks == 4
    assert stats.bf16_bytes == 4 * TOKENS * 3 * 8 * 2 * 2  # of the whole window
    factors = 4 * 4 * 3
    assert stats.stored_bytes == 2 * 8 * stats.page_bytes + factors
    assert stats.padding_waste_ratio == pytest.approx(1 - TOKENS / 128)


@pytest.mark.parametrize(("positions", "starts"), [("absolute", [0, 300, 400, 500]), ("window", [0, 100, 200, 300])])
def test_a_chunk_that_nobody_keeps_still_has_its_place(positions, starts):
    codecs = StreamCodecs("int2", look_back=[(0, 0, 2, 1, False)])
    manager = make_manager(40, codecs, num_kv_heads=3)
    stream = committed(manager, 6, Window(1, 3, positions))
    assert kept(stream) == {0: [], 3: [], 4: [], 5: [0, 1, 2]}
    assert manager.pool.num_used_pages == 2 * 3 and manager.stats().num_chunks == 4
    assert stream.peak_pages == 2 * 2 * 3
    assert all(chunk.alpha is None for chunk in stream.chunks() if chunk.index < 5)
    with manager.transaction([QueryRange(stream)]) as plan:
        assert [read.first_token for read in plan.ranges[0].reads] == starts
    manager.release(stream)
    manager.check()
    assert manager.pool.num_free_pages == 40


def test_only_heads_that_stay_are_stored_again():
    manager = manager_of(1000, newest="bf16")
    stream = committed(manager, 1)
    with manager.transaction([QueryRange(stream, commit=True)]) as plan:
        recoded, own = plan.pending
        assert heads_of(own.chunk) == [0, 1, 2] and str(own.chunk.codecs) == "bf16"
        assert (recoded.chunk.index, heads_of(recoded.chunk)) == (0, [0, 2])
        for pending in plan.pending:
            pending.layers_written.add(0)
    manager.check()
    assert kept(stream) == {0: [0, 2], 1: [0, 1, 2]}


def test_a_replaced_chunk_is_stored_for_the_heads_that_still_had_it():
    manager = manager_of(100)
    stream = committed(manager, 4)
    commit(manager, QueryRange(stream, commit=True, replaces=2))
    assert kept(stream) == {0: [0, 2], 1: [0], 2: [0, 2], 3: [0, 1, 2]}


def test_a_chunk_that_is_dropped_is_gone_for_all_heads():
    manager = manager_of(100)
    stream = committed(manager, 5)
    manager.drop(stream, [3])
    manager.check()
    assert kept(stream) == {0: [0, 2], 2: [0], 4: [0, 1, 2]}


# ------------------------------------------------------------------ sinks and pins


def test_only_heads_that_keep_sinks_make_them_permanent():
    manager = manager_of(100)
    stream = committed(manager, 1)
    assert heads_of(stream.permanent[0]) == [0, 2] and kept(stream) == {0: [0, 1, 2]}
    assert manager.reserved_pages == stream.peak_pages
    twin = manager.fork(stream)
    manager.check()
    assert manager.reserved_pages == 2 * stream.peak_pages - 2 * 2
    for _ in range(4):
        commit(manager, stream, twin)
    assert kept(stream)[0] == kept(twin)[0] == [0, 2]
    assert manager.pool.num_used_pages == 2 * 2 + 2 * 2 * 6


def test_a_pin_shields_the_heads_that_a_chunk_has_then_and_unpinning_lets_go_at_once():
    manager = manager_of(100)
    stream = committed(manager, 4)
    base = stream.peak_pages
    manager.pin(stream, 2)  # head 1 has let go of it
    manager.pin(stream, 3)
    manager.check()
    assert stream.peak_pages == base + 2 * 2 + 2 * 3
    commit(manager, stream)
    assert kept(stream) == {0: [0, 2], 2: [0, 2], 3: [0, 1, 2], 4: [0, 1, 2]}
    manager.unpin(stream, 3)
    manager.check()
    assert kept(stream)[3] == [0, 2]
    for _ in range(4):
        commit(manager, stream)
    assert kept(stream)[2] == [0, 2]
    manager.unpin(stream, 2)
    manager.check()
    assert live(stream) == [0, 6, 7, 8] and stream.peak_pages == base == manager.reserved_pages


def test_a_pinned_newest_chunk_is_stored_again_for_all_its_heads():
    manager = manager_of(1000, newest="bf16")
    stream = committed(manager, 2)
    manager.pin(stream, 1)
    commit(manager, stream)
    assert kept(stream)[1] == [0, 1, 2] and str(stream.history("cond").chunks[1].codecs) == "int2"


# ------------------------------------------------------------------ forks


def test_forks_at_different_ages_share_the_heads_that_both_keep():
    manager = manager_of(100)
    a = committed(manager, 4)
    b = manager.fork(a)
    commit(manager, a)
    assert kept(a) == {0: [0, 2], 2: [0], 3: [0, 2], 4: [0, 1, 2]}
    assert kept(b) == {0: [0, 2], 1: [0], 2: [0, 2], 3: [0, 1, 2]}
    # Chunk 0: 2 heads, 1: 1, 2: 2 (head 2 of b alone), 3: 3 (head 1 of b alone), 4: 3.
    assert manager.pool.num_used_pages == 2 * (2 + 1 + 2 + 3 + 3)
    stats = manager.stats()
    assert (stats.num_chunks, stats.num_shared_chunks) == (5, 3)
    assert stats.stored_bytes == stats.pages_used * stats.page_bytes + 5 * 3 * 4
    a2, b2 = (stream.history("cond").chunks[2] for stream in (a, b))
    assert a2.id == b2.id and a2.table.ids.tolist() == b2.table.ids[[0, 2]].tolist()
    manager.release(b)
    manager.check()
    assert manager.pool.num_used_pages == 2 * (2 + 1 + 2 + 3)
    manager.release(a)
    manager.check()
    assert manager.pool.num_used_pages == 0


def test_a_fork_pins_what_the_other_lets_go_of():
    manager = manager_of(100)
    a = committed(manager, 3)
    b = manager.fork(a)
    manager.pin(b, 2)
    for _ in range(3):
        commit(manager, a)
        manager.check()
    assert live(a) == [0, 3, 4, 5] and kept(b)[2] == [0, 1, 2]
    with_pin = manager.reserved_pages
    manager.unpin(b, 2)
    manager.check()
    assert manager.reserved_pages == with_pin - 2 * 3


def test_a_pin_pays_only_for_heads_that_no_pin_keeps_yet():
    look_back = [(0, 1, 1, 1, False)]
    peak = 2 * (2 + 2 * 2 + 3 + 3)  # a sink and two recent chunks without head 1, the newest, the one being committed
    sink, thin, whole = 2 * 2, 2 * 2, 2 * 3
    for spare, is_possible in ((-1, False), (0, True)):
        manager = manager_of(2 * peak - sink + whole + spare, look_back)
        a = committed(manager, 3)
        assert a.peak_pages == peak
        b = manager.fork(a)
        commit(manager, a)
        manager.pin(a, 2)  # without head 1
        assert manager.reserved_pages == 2 * peak - sink + thin
        if is_possible:
            manager.pin(b, 2)
            assert manager.reserved_pages == manager.pool.num_pages
            manager.check()
        else:
            with pytest.raises(CapacityError, match="pinning chunk 2 of stream 1 needs 2 pages"):
                manager.pin(b, 2)


def test_replacing_a_shared_sink_needs_pages_for_the_heads_that_keep_sinks():
    manager = manager_of(100)
    a = committed(manager, 1)
    manager.fork(a)
    with manager.transaction([QueryRange(a, commit=True, replaces=0)]) as plan:
        assert manager.reserved_pages == 2 * a.peak_pages - 2 * 2 + 2 * 2  # the sink of either is its own from now on
        plan.pending[0].layers_written.add(0)
    manager.check()
    assert manager.reserved_pages == 2 * a.peak_pages
    with manager.transaction([QueryRange(a, commit=True, replaces=0)]) as plan:
        assert manager.reserved_pages == 2 * a.peak_pages  # nobody shares it now, so it needs none
        plan.pending[0].layers_written.add(0)
