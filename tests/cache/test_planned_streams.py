"""Streams whose commits and drops are known in advance: exact promises, and what happens when they are not kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import planned_peak_pages
from pagedvid.cache.window import Commit, Window
from pagedvid.errors import CapacityError, StateError
from tests.cache.bookkeeping import commit, live, make_manager, mark_written
from tests.cache.plans import CODECS, plans


@given(plans(), st.sampled_from(CODECS), st.integers(1, 2))
def test_a_pool_of_exactly_the_planned_peak_is_enough_and_is_used_up(plan, codecs, num_branches):
    window, commits = plan
    branches = ("cond", "uncond")[:num_branches]
    model = {"codecs": codecs, "num_layers": 2, "num_kv_heads": 2}
    peak = num_branches * planned_peak_pages(make_manager(1, **model).shape, window, codecs, commits)
    manager = make_manager(max(1, peak), **model)
    assert manager.pages_needed(window, 300, num_branches=num_branches, commits=commits) == peak
    stream = manager.open(window, 300, branches=branches, commits=commits)
    assert manager.reserved_pages == peak and stream.max_chunks == len(commits)
    for planned in commits:
        manager.drop(stream, planned.drops)
        commit(manager, *(QueryRange(stream, name, planned.num_tokens, commit=True) for name in branches))
    assert manager.pool.peak_used_pages == peak
    if peak > 1:
        with pytest.raises(CapacityError, match=f"needs {peak} pages"):
            make_manager(peak - 1, **model).open(window, 300, branches=branches, commits=commits)
    manager.release(stream)
    manager.check()
    assert manager.reserved_pages == manager.pool.num_used_pages == 0


def test_a_stream_must_keep_to_its_plan():
    manager = make_manager(20)
    stream = manager.open(Window(0, 9), 200, commits=[Commit(100), Commit(200, drops=(0,))])
    with pytest.raises(StateError, match=r"opened to commit 100 tokens as chunk 0 .* it commits 200"):
        commit(manager, QueryRange(stream, num_tokens=200, commit=True))
    commit(manager, QueryRange(stream, num_tokens=100, commit=True))
    with pytest.raises(StateError, match=r"after dropping chunks \[0\]; it commits 200 and still keeps \[0\]"):
        commit(manager, QueryRange(stream, num_tokens=200, commit=True))
    manager.drop(stream, [0])
    commit(manager, QueryRange(stream, num_tokens=200, commit=True))
    with pytest.raises(StateError, match="max_chunks=2, all of which are committed"):
        commit(manager, QueryRange(stream, num_tokens=1, commit=True))
    assert live(stream) == [1]


def test_dropped_pages_are_free_at_once_and_positions_stay():
    manager = make_manager(20)
    stream = manager.open(Window(0, 5), 100)
    for _ in range(3):
        commit(manager, stream)
    manager.drop(stream, [0, 2])
    manager.check()
    assert live(stream) == [1] and manager.pool.num_used_pages == 2
    with manager.transaction([QueryRange(stream)]) as plan:
        assert [(read.chunk.index, read.first_token) for read in plan.ranges[0].reads] == [(1, 100)]
        assert plan.ranges[0].first_token == 300
    with pytest.raises(StateError, match=r"chunks \[2\] are not kept"):
        manager.drop(stream, [2])


def test_window_positions_close_the_gap_of_a_dropped_chunk():
    manager = make_manager(20)
    stream = manager.open(Window(0, 5, "window"), 100, commits=[Commit(70), Commit(90, drops=(0,))])
    commit(manager, QueryRange(stream, num_tokens=70, commit=True))
    manager.drop(stream, [0])
    with manager.transaction([QueryRange(stream, num_tokens=90, commit=True)]) as plan:
        assert plan.ranges[0].first_token == 0
        mark_written(manager, plan)
    with manager.transaction([QueryRange(stream, num_tokens=20)]) as plan:
        assert [read.first_token for read in plan.ranges[0].reads] == [0] and plan.ranges[0].first_token == 90


def test_sinks_pins_and_busy_streams_keep_their_chunks():
    manager = make_manager(20)
    stream = manager.open(Window(1, 3), 100)
    for _ in range(3):
        commit(manager, stream)
    manager.pin(stream, 2)
    for index in (0, 2):
        with pytest.raises(StateError, match=rf"chunks \[{index}\] .* are sinks or pinned"):
            manager.drop(stream, [1, index])
    with manager.transaction([QueryRange(stream)]), pytest.raises(StateError, match="inside an open step"):
        manager.drop(stream, [1])
    assert live(stream) == [0, 1, 2]


def test_a_fork_keeps_what_the_other_drops():
    manager = make_manager(20)
    stream = manager.open(Window(0, 3), 100)
    commit(manager, stream)
    twin = manager.fork(stream)
    manager.drop(stream, [0])
    manager.check()
    assert (live(stream), live(twin), manager.pool.num_used_pages) == ([], [0], 2)


def test_a_range_may_have_any_position_but_a_commit_only_the_one_where_it_will_be_read():
    manager = make_manager(20)
    stream = manager.open(Window(0, 3), 100)
    commit(manager, stream)
    ranges = [
        QueryRange(stream, position=40, visible=()),
        QueryRange(stream, commit=True, position=100),
        QueryRange(stream),
        QueryRange(stream, position=0),
    ]
    with manager.transaction(ranges) as plan:
        assert [part.first_token for part in plan.ranges] == [40, 100, 200, 0]
        mark_written(manager, plan)
    with pytest.raises(StateError, match="a commit at position 40 would be read at 200"):
        commit(manager, QueryRange(stream, commit=True, position=40))


def test_the_tag_of_a_commit_stays_with_its_chunk():
    manager = make_manager(40, StreamCodecs("int2", newest="bf16"))
    stream = manager.open(Window(0, 3), 100)
    commit(manager, QueryRange(stream, commit=True, tag="cameras of chunk 0"))
    commit(manager, QueryRange(stream, commit=True, tag="cameras of chunk 1"))
    chunks = stream.history("cond").chunks
    assert [(str(chunk.codecs), chunk.tag) for chunk in chunks.values()] == [
        ("int2", "cameras of chunk 0"),
        ("bf16", "cameras of chunk 1"),
    ]
