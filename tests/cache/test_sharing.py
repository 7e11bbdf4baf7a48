"""Forks, replacements and pins: chunks that more than one stream, or more than the window, keeps."""

from __future__ import annotations

import pytest

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.errors import CapacityError, StateError
from tests.cache.bookkeeping import commit, live, make_manager, mark_written

WINDOW = Window(sink_chunks=1, recent_chunks=2)
TOKENS = 100
"""Two int2 pages in a cache of one layer and one head, so a stream of WINDOW peaks at 8 pages."""


def test_a_fork_shares_chunks_and_reserves_its_peak_less_the_sinks():
    manager = make_manager(14)
    stream = manager.open(WINDOW, TOKENS)
    for _ in range(4):
        commit(manager, stream)
    twin = manager.fork(stream)
    manager.check()
    assert manager.reserved_pages == 14
    assert list(twin.chunks()) == list(stream.chunks())
    assert manager.stats().num_shared_chunks == 3 and manager.stats().pages_used == 6
    assert manager.stats().pages_shared == 6
    commit(manager, twin)  # which lets go of the oldest of its recent chunks
    assert manager.stats().pages_shared == 4


def test_a_fork_is_refused_with_the_numbers():
    manager = make_manager(13)
    stream = manager.open(WINDOW, TOKENS)
    commit(manager, stream)
    with pytest.raises(CapacityError, match=r"a fork of stream 0 \(2 pages of its sinks are shared\) needs 6 pages"):
        manager.fork(stream)
    manager.check()


@pytest.mark.parametrize("released_first", [0, 1])
def test_both_sides_of_a_fork_go_on_alone(released_first):
    """I7: after a fork each side commits and slides by itself, and releasing one leaves the other's chunks."""
    manager = make_manager(14)
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
    assert manager.reserved_pages == 8 and manager.pool.num_used_pages == 6
    commit(manager, left)
    manager.release(left)
    assert manager.pool.num_free_pages == 14 and manager.reserved_pages == 0


def test_many_forks_of_a_fork_count_the_sink_once():
    manager = make_manager(2 + 6 * 10)
    streams = [manager.open(WINDOW, TOKENS)]
    commit(manager, streams[0])
    for _ in range(9):
        streams.append(manager.fork(streams[-1]))
    assert manager.reserved_pages == 62
    for _ in range(5):
        commit(manager, *streams)
    assert manager.pool.num_used_pages == 2 + 4 * 10


def test_a_fork_keeps_pins_and_the_end_of_the_video():
    manager = make_manager(40)
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
    """The old sink stays with the fork, so the budget grows: refused while a page is missing, possible with it."""
    for num_pages, is_possible in ((15, False), (16, True)):
        manager = make_manager(num_pages)
        a = manager.open(WINDOW, TOKENS)
        commit(manager, a)
        b = manager.fork(a)
        ask = QueryRange(a, commit=True, replaces=0)
        if not is_possible:
            with pytest.raises(CapacityError, match=r"replacing a chunk .* needs 2 pages; 14 of 15 are reserved"):
                commit(manager, ask)
        else:
            commit(manager, ask)
            assert next(a.chunks()) is not next(b.chunks())
        for _ in range(4):
            commit(manager, a, b)


def test_replacing_at_the_peak_borrows_pages_until_the_step_ends():
    manager = make_manager(10)
    stream = manager.open(Window(0, 1), 2 * 128, max_chunks=1)  # peaks at 4 pages
    commit(manager, stream)
    other = manager.open(Window(0, 1), 1, max_chunks=1)
    with manager.transaction([QueryRange(stream, commit=True, replaces=0)]) as plan:
        assert manager.reserved_pages == 10
        with pytest.raises(CapacityError):
            manager.open(Window(0, 1), 1)
        mark_written(manager, plan)
    assert manager.reserved_pages == 6
    manager.open(Window(0, 1), 1, max_chunks=1)
    with pytest.raises(CapacityError, match="replacing a chunk while the old one is still in use needs 4 pages"):
        commit(manager, QueryRange(stream, commit=True, replaces=0))
    commit(manager, other)


def test_a_pin_outlives_the_window_and_unpinning_drops_it():
    manager = make_manager(10)
    stream = manager.open(WINDOW, TOKENS)
    for _ in range(3):
        commit(manager, stream)
    manager.pin(stream, 2)
    manager.check()
    assert manager.reserved_pages == 10
    for _ in range(4):
        commit(manager, stream)
    assert live(stream) == [0, 2, 5, 6]
    manager.unpin(stream, 2)
    manager.check()
    assert live(stream) == [0, 5, 6] and manager.reserved_pages == 8


def test_unpinning_inside_the_window_keeps_the_chunk():
    manager = make_manager(10)
    stream = manager.open(WINDOW, TOKENS)
    commit(manager, stream), commit(manager, stream)
    manager.pin(stream, 1)
    manager.unpin(stream, 1)
    assert live(stream) == [0, 1]
    manager.check()


def test_a_pin_without_room_is_refused():
    manager = make_manager(9)
    stream = manager.open(WINDOW, TOKENS)
    commit(manager, stream), commit(manager, stream)
    with pytest.raises(CapacityError, match="pinning chunk 1 of stream 0 needs 2 pages; 8 of 9 are reserved"):
        manager.pin(stream, 1)
    manager.check()


def test_a_second_pin_of_a_shared_chunk_is_free():
    manager = make_manager(8 + 6 + 2)
    a = manager.open(WINDOW, TOKENS)
    commit(manager, a), commit(manager, a)
    b = manager.fork(a)
    manager.pin(a, 1)
    assert manager.reserved_pages == 16
    manager.pin(b, 1)
    manager.check()
    for _ in range(4):
        commit(manager, a, b)
    assert live(a) == live(b) == [0, 1, 4, 5]
    manager.unpin(a, 1)
    manager.check()
    assert manager.reserved_pages == 16
    manager.unpin(b, 1)
    manager.check()
    assert manager.reserved_pages == 14


def test_a_pinned_newest_chunk_takes_its_final_codec_with_the_next_commit():
    manager = make_manager(120, StreamCodecs("int2", newest="bf16"))
    stream = manager.open(Window(0, 1), TOKENS)
    commit(manager, stream)
    manager.pin(stream, 0)
    commit(manager, stream)
    assert [(chunk.index, str(chunk.codecs)) for chunk in stream.chunks()] == [(0, "int2"), (1, "bf16")]
    assert manager.reserved_pages == 24 + 2


@pytest.mark.parametrize(
    ("index", "message"),
    [(0, "is a sink or pinned already"), (1, r"chunks \[1\] are not kept"), (3, "is a sink or pinned already")],
    ids=["sink", "gone", "pinned"],
)
def test_pins_that_make_no_sense(index, message):
    manager = make_manager(40)
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


def test_chunks_that_leave_a_window_are_counted():
    manager = make_manager(20)
    stream = manager.open(WINDOW, TOKENS)
    for num_evicted in (0, 0, 0, 1, 2):
        commit(manager, stream)
        assert manager.stats().num_evicted_chunks == num_evicted
    manager.drop(stream, (3,))
    assert manager.stats().num_evicted_chunks == 3
    commit(manager, QueryRange(stream, replaces=4, commit=True))
    manager.release(stream)
    assert manager.stats().num_evicted_chunks == 3, "neither replacing a chunk nor the end of a stream counts"
