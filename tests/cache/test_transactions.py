"""Steps publish everything or nothing, one at a time per stream."""

from __future__ import annotations

import pytest

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.errors import StateError
from tests.cache.bookkeeping import commit, live, make_manager, mark_written

WINDOW = Window(sink_chunks=1, recent_chunks=2)
TOKENS = 100
"""Two int2 pages in a cache of one layer and one head, so a stream of WINDOW peaks at 8 pages."""


def test_a_commit_is_published_when_the_block_ends():
    manager = make_manager(16)
    a, b = manager.open(WINDOW, TOKENS), manager.open(WINDOW, TOKENS)
    with manager.transaction([QueryRange(a, commit=True), QueryRange(b, commit=True)]) as plan:
        assert manager.pool.num_used_pages == 4
        assert live(a) == live(b) == []
        manager.check()
        mark_written(manager, plan)
    assert live(a) == live(b) == [0]


class Broken(BaseException):
    """Like KeyboardInterrupt: no `Exception`."""


@pytest.mark.parametrize("error", [Broken, KeyboardInterrupt, ValueError])
def test_any_exception_rolls_everything_back(error):
    manager = make_manager(120, StreamCodecs("int2", newest="bf16"))
    a, b = manager.open(WINDOW, TOKENS), manager.open(WINDOW, TOKENS)
    commit(manager, a, b)
    used, chunks = manager.pool.num_used_pages, [*a.chunks(), *b.chunks()]
    ranges = [QueryRange(a, commit=True), QueryRange(b, commit=True)]
    with pytest.raises(error), manager.transaction(ranges) as plan:
        assert manager.pool.num_used_pages == used + 2 * (12 + 2)
        mark_written(manager, plan)
        raise error
    assert manager.pool.num_used_pages == used and [*a.chunks(), *b.chunks()] == chunks
    manager.check()
    commit(manager, a, b)


def test_a_commit_that_forgets_a_layer_publishes_nothing():
    manager = make_manager(24, num_layers=3)
    stream = manager.open(WINDOW, TOKENS)
    with (
        pytest.raises(StateError, match=r"chunk 0 ended before layers \[0, 2\] were attended.*Nothing was published"),
        manager.transaction([QueryRange(stream, commit=True)]) as plan,
    ):
        plan.pending[0].layers_written.add(1)
    assert live(stream) == [] and manager.pool.num_free_pages == 24
    manager.check()


def test_a_busy_stream_refuses_everything_until_its_step_ends():
    manager = make_manager(40)
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
    manager, elsewhere = make_manager(40), make_manager(40)
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
    manager = make_manager(200, StreamCodecs("int4", sink="int8", newest="bf16"))
    streams = [manager.open(Window(1, n), TOKENS) for n in (1, 2)]
    for i in range(5):
        commit(manager, *streams)
        if i == 2:
            streams.append(manager.fork(streams[1]))
            manager.pin(streams[1], 2)
    for stream in streams:
        manager.release(stream)
        manager.check()
    assert sorted(manager.pool.free_ids) == list(range(200))
    stats = manager.stats()
    assert (stats.pages_used, stats.pages_reserved, stats.num_chunks, stats.num_streams) == (0, 0, 0, 0)
    assert stats.padding_waste_ratio == 0.0 and stats.stored_bytes == 0
    assert stats.pages_peak == manager.pool.peak_used_pages > 0
