"""A longer plan for an open stream: what it reserves, what it allows, and what it refuses."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import planned_peak_pages
from pagedvid.cache.window import Commit, Window
from pagedvid.errors import CapacityError, ShapeError, StateError
from tests.cache.bookkeeping import commit, live, make_manager
from tests.cache.plans import CODECS, plans


def test_a_finished_video_goes_on():
    manager = make_manager(20)
    stream = manager.open(Window(1, 2), 100, max_chunks=2)
    for _ in range(2):
        commit(manager, stream)
    assert manager.reserved_pages == 4
    manager.extend(stream, max_chunks=6)
    manager.check()
    assert stream.max_chunks == 6 and manager.reserved_pages == manager.pages_needed(Window(1, 2), 100) == 8
    for _ in range(4):
        commit(manager, stream)
    with pytest.raises(StateError, match="max_chunks=6, all of which are committed"):
        commit(manager, stream)


def test_without_numbers_the_stream_has_no_end():
    manager = make_manager(20)
    stream = manager.open(Window(1, 2), 100, max_chunks=1)
    manager.extend(stream)
    assert stream.max_chunks is None
    for _ in range(9):
        commit(manager, stream)


def test_pins_are_reserved_besides():
    manager = make_manager(20)
    stream = manager.open(Window(0, 2), 100, max_chunks=3)
    for _ in range(2):
        commit(manager, stream)
    manager.pin(stream, 0)
    manager.extend(stream, max_chunks=9)
    manager.check()
    assert manager.reserved_pages == 6 + 2


def test_what_does_not_fit_is_refused_and_the_old_plan_stays():
    manager = make_manager(7)
    stream = manager.open(Window(1, 2), 100, max_chunks=2)
    commit(manager, stream)
    before = manager.stats()
    with pytest.raises(CapacityError, match=r"the new plan of stream 0 needs 4 pages; 4 of 7 are reserved, 3 are left"):
        manager.extend(stream, max_chunks=5)
    assert manager.stats() == before and stream.max_chunks == 2
    manager.check()
    manager.extend(stream, max_chunks=3)
    assert manager.reserved_pages == 6


def test_a_plan_that_contradicts_what_was_committed_is_refused():
    manager = make_manager(40)
    stream = manager.open(Window(0, 9), 200, branches=("cond", "uncond"), commits=[Commit(100), Commit(200)])
    for num_tokens in (100, 200):
        commit(manager, QueryRange(stream, num_tokens=num_tokens, commit=True))
    reserved = manager.reserved_pages
    for plan, message in (
        ([Commit(100)], "a plan of 1 chunks is too short for stream 0, which has committed 2"),
        ([Commit(100), Commit(100), Commit(100)], r"chunk 1 with 100 tokens; branch 'cond' .* keeps it with 200"),
        ([Commit(100), Commit(200, drops=(0,)), Commit(9)], "chunk 0 with 100 tokens, dropped; branch 'cond'"),
    ):
        with pytest.raises(StateError, match=message):
            manager.extend(stream, commits=plan)
    with pytest.raises(StateError, match="too short"):
        manager.extend(stream, max_chunks=1)
    assert manager.reserved_pages == reserved and stream.max_chunks == 2
    manager.extend(stream, commits=[Commit(100), Commit(200), Commit(50, drops=(0,))])
    commit(manager, *(QueryRange(stream, "uncond", num_tokens=100, commit=True),))
    assert live(stream, "uncond") == [0]


def test_busy_streams_and_wrong_arguments_are_refused():
    manager = make_manager(40)
    stream = manager.open(Window(0, 9), 200, max_chunks=1)
    with manager.transaction([QueryRange(stream)]), pytest.raises(StateError, match="inside an open step"):
        manager.extend(stream, max_chunks=2)
    for wrong in ({"max_chunks": -1}, {"max_chunks": 2.5}, {"commits": 3}, {"commits": [3]}):
        with pytest.raises(ShapeError):
            manager.extend(stream, **wrong)
    assert stream.max_chunks == 1


@given(plans(), st.sampled_from(CODECS), st.data())
def test_an_extended_stream_reserves_what_it_would_have_from_the_start(plan, codecs, data):
    """And a pool of exactly that many pages is enough to follow the whole plan."""
    window, commits = plan
    num_first = data.draw(st.integers(0, len(commits)), label="first")
    num_done = data.draw(st.integers(0, num_first), label="done")
    model = {"codecs": codecs, "num_layers": 2, "num_kv_heads": 2}
    peak = planned_peak_pages(make_manager(1, **model).shape, window, codecs, commits)
    manager = make_manager(max(1, peak), **model)
    stream = manager.open(window, 300, commits=commits[:num_first])

    def follow(planned: Commit) -> None:
        manager.drop(stream, planned.drops)
        commit(manager, QueryRange(stream, num_tokens=planned.num_tokens, commit=True))

    for planned in commits[:num_done]:
        follow(planned)
    manager.extend(stream, commits=commits)
    manager.check()
    assert manager.reserved_pages == peak
    for planned in commits[num_done:]:
        follow(planned)
    assert manager.pool.peak_used_pages == peak


def test_a_recoded_newest_chunk_is_part_of_the_longer_plan():
    manager = make_manager(200, StreamCodecs("bf16", newest="int2"))
    stream = manager.open(Window(0, 1), 100, max_chunks=1)
    commit(manager, stream)
    manager.extend(stream, max_chunks=2)
    assert manager.reserved_pages == manager.pages_needed(Window(0, 1), 100, max_chunks=2)
    commit(manager, stream)
