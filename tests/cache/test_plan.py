"""What a step reads and writes: visibility, positions, chunks in flight, and requests that cannot be planned."""

from __future__ import annotations

import pytest

from pagedvid.cache.manager import CacheManager
from pagedvid.cache.plan import QueryRange, StepPlan
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.errors import ShapeError, StateError
from tests.cache.bookkeeping import commit, live, make_manager, mark_written

TOKENS = 100


def plan_of(manager: CacheManager, *ranges: QueryRange) -> StepPlan:
    """The plan of a step in which nothing happens; commits in it are abandoned."""

    class Abandoned(Exception):
        pass

    with pytest.raises(Abandoned), manager.transaction(ranges) as plan:
        raise Abandoned
    return plan


def stream_with(manager: CacheManager, num_chunks: int, window: Window) -> Stream:
    stream = manager.open(window, TOKENS)
    for _ in range(num_chunks):
        commit(manager, stream)
    return stream


def reads(plan: StepPlan, number: int = 0) -> list[tuple[int, int]]:
    return [(read.chunk.index, read.first_token) for read in plan.ranges[number].reads]


def test_absolute_positions_count_from_the_start_of_the_video():
    manager = make_manager(40)
    stream = stream_with(manager, 6, Window(1, 2))
    plan = plan_of(manager, QueryRange(stream))
    assert reads(plan) == [(0, 0), (4, 400), (5, 500)]
    assert plan.ranges[0].first_token == 600


def test_window_positions_close_the_gap():
    manager = make_manager(40)
    stream = stream_with(manager, 6, Window(1, 2, positions="window"))
    plan = plan_of(manager, QueryRange(stream))
    assert reads(plan) == [(0, 0), (4, 100), (5, 200)]
    assert plan.ranges[0].first_token == 300


@pytest.mark.parametrize(("positions", "expected"), [("absolute", [0, 100, 117, 118]), ("window", [0, 100, 117, 118])])
def test_short_chunks_shift_what_follows_by_their_own_length(positions, expected):
    manager = make_manager(40)
    stream = manager.open(Window(1, 3, positions), TOKENS)
    commit(manager, stream)
    commit(manager, QueryRange(stream, num_tokens=17, commit=True))
    commit(manager, QueryRange(stream, num_tokens=1, commit=True))
    plan = plan_of(manager, QueryRange(stream))
    assert [*(first for _, first in reads(plan)), plan.ranges[0].first_token] == expected


def test_given_positions_stay_with_their_chunks():
    manager = make_manager(40)
    stream = manager.open(Window(1, 2, positions="given"), TOKENS)
    for position in (700, 0, 2**60, 700, 5):
        commit(manager, QueryRange(stream, commit=True, position=position))
    plan = plan_of(
        manager, QueryRange(stream, position=3), QueryRange(stream, position=9), QueryRange(stream, position=3)
    )
    assert reads(plan) == [(0, 700), (3, 700), (4, 5)]
    assert [range_.first_token for range_ in plan.ranges] == [3, 9, 3]
    pinned = QueryRange(stream, commit=True, replaces=3)
    assert plan_of(manager, pinned).ranges[0].first_token == 700


@pytest.mark.parametrize("commits", [False, True])
def test_given_positions_are_given_by_every_range(commits):
    manager = make_manager(40)
    stream = manager.open(Window(1, 2, positions="given"), TOKENS)
    with pytest.raises(StateError, match="range 0 has no position, but those of stream 0 are given"):
        plan_of(manager, QueryRange(stream, commit=commits))


def test_counted_positions_of_commits_are_not_given():
    manager = make_manager(40)
    with pytest.raises(StateError, match="a commit at position 7 would be read at 0; leave position out"):
        plan_of(manager, QueryRange(manager.open(Window(1, 2), TOKENS), commit=True, position=7))


def test_no_position_exceeds_the_window_however_long_the_video():
    manager = make_manager(40)
    stream = manager.open(Window(2, 3, positions="window"), TOKENS)
    for num_tokens in [100, 17, 100, 1, 100, 100, 50, 100, 100, 100]:
        commit(manager, QueryRange(stream, num_tokens=num_tokens, commit=True))
        plan = plan_of(manager, QueryRange(stream))
        assert plan.ranges[0].first_token <= 5 * TOKENS


def test_ranges_are_packed_in_the_order_given():
    manager = make_manager(40)
    a, b = stream_with(manager, 2, Window(1, 2)), stream_with(manager, 0, Window(0, 1))
    plan = plan_of(manager, QueryRange(b, num_tokens=7), QueryRange(a), QueryRange(b, num_tokens=100))
    assert [(range_.start, range_.stop) for range_ in plan.ranges] == [(0, 7), (7, 107), (107, 207)]
    assert plan.num_tokens == 207
    assert [range_.stream for range_ in plan.ranges] == [b, a, b]


def test_chunks_in_flight_follow_one_another_and_see_what_they_ask_for():
    manager = make_manager(40)
    stream = stream_with(manager, 5, Window(1, 3, positions="window"))
    plan = plan_of(
        manager,
        QueryRange(stream, visible=(0, 4)),
        QueryRange(stream, visible=(4,), sees_ranges=(0,)),
        QueryRange(stream, num_tokens=50, visible=(), sees_ranges=(0, 1)),
    )
    assert [range_.first_token for range_ in plan.ranges] == [400, 500, 600]
    assert [reads(plan, number) for number in range(3)] == [[(0, 0), (4, 300)], [(4, 300)], []]
    assert [range_.current for range_ in plan.ranges] == [(0,), (0, 1), (0, 1, 2)]


def test_branches_have_histories_of_their_own():
    manager = make_manager(40)
    stream = manager.open(Window(1, 1), TOKENS, branches=("cond", "uncond"))
    for branch in ("cond", "cond", "cond", "uncond"):
        commit(manager, QueryRange(stream, branch, commit=True))
    assert (live(stream), live(stream, "uncond")) == ([0, 2], [0])
    plan = plan_of(manager, QueryRange(stream, "uncond"), QueryRange(stream, "cond"))
    assert [range_.first_token for range_ in plan.ranges] == [100, 300]
    assert stream.num_committed == 3


def test_a_commit_writes_its_chunk_and_the_last_one_in_its_final_codec():
    manager = make_manager(120, StreamCodecs("int2", sink="int8", newest="bf16"))
    stream = stream_with(manager, 3, Window(1, 2))
    (range_,) = plan_of(manager, QueryRange(stream, commit=True)).ranges
    assert [
        (c.index, str(c.codecs), c.first_token, c.position) for c in (pending.chunk for pending in range_.writes)
    ] == [
        (2, "int2", 200, 200),
        (3, "bf16", 300, 300),
    ]
    assert range_.writes[0].source is stream.history("cond").chunks[2]
    assert [str(chunk.codecs) for chunk in stream.chunks()] == ["int8", "int2", "bf16"]


def test_a_replacement_sees_only_what_came_before_and_has_the_position_of_the_old_chunk():
    manager = make_manager(120)
    stream = stream_with(manager, 5, Window(1, 2, positions="window"))
    (range_,) = plan_of(manager, QueryRange(stream, commit=True, replaces=4)).ranges
    assert [read.chunk.index for read in range_.reads] == [0, 3]
    assert range_.first_token == 200
    (pending,) = range_.writes
    assert (pending.chunk.index, pending.chunk.position, pending.chunk.first_token) == (4, 200, 400)


def test_replaces_without_commit_only_reads():
    manager = make_manager(120)
    stream = stream_with(manager, 3, Window(1, 2))
    (range_,) = plan_of(manager, QueryRange(stream, replaces=2)).ranges
    assert range_.writes == () and range_.first_token == 200


def bad_requests(a: Stream, b: Stream) -> dict[str, tuple[list[QueryRange], type[Exception], str]]:
    return {
        "nothing": ([], StateError, "at least one query range"),
        "no tokens": ([QueryRange(a, num_tokens=0)], ShapeError, "range 0 has 0 tokens; .* 1 to 100"),
        "too many tokens": ([QueryRange(a, num_tokens=101)], ShapeError, "range 0 has 101 tokens; .* 1 to 100"),
        "unknown branch": ([QueryRange(a, "left")], StateError, "no branch 'left'; it was opened with cond"),
        "sees itself": ([QueryRange(a, sees_ranges=(0,))], StateError, r"sees ranges \(0,\)"),
        "sees nobody": (
            [QueryRange(a), QueryRange(b, sees_ranges=(2,))],
            StateError,
            "allowed are others from 0 to 1",
        ),
        "sees one twice": ([QueryRange(a), QueryRange(a, sees_ranges=(0, 0))], StateError, "each once"),
        "a chunk that left": ([QueryRange(a, visible=(0, 1))], StateError, r"chunks \[1\] are not kept; .*\[0, 3, 4\]"),
        "a chunk twice": ([QueryRange(a, visible=(0, 3, 0))], StateError, "names a chunk twice"),
        "commits twice": ([QueryRange(a, commit=True)] * 2, StateError, "commit one chunk per step"),
        "commits what is in flight": ([QueryRange(a), QueryRange(a, commit=True)], StateError, "before the chunks in"),
        "appends and replaces": (
            [QueryRange(a, commit=True), QueryRange(a, commit=True, replaces=4)],
            StateError,
            "commit one chunk per step",
        ),
        "replaces what left": ([QueryRange(a, commit=True, replaces=2)], StateError, r"chunks \[2\] are not kept"),
        "another length": (
            [QueryRange(a, num_tokens=99, commit=True, replaces=4)],
            ShapeError,
            "99 tokens; chunk 4, which it replaces, has 100",
        ),
        "beyond the end": ([QueryRange(b, commit=True)], StateError, "max_chunks=0, all of which are committed"),
    }


@pytest.mark.parametrize("name", bad_requests(None, None))  # type: ignore[arg-type]
def test_a_request_that_cannot_be_planned_takes_nothing(name):
    manager = make_manager(120)
    a, b = stream_with(manager, 5, Window(1, 2)), manager.open(Window(1, 2), TOKENS, max_chunks=0)
    ranges, error, message = bad_requests(a, b)[name]
    free = manager.pool.num_free_pages
    with pytest.raises(error, match=message), manager.transaction(ranges):
        raise AssertionError("the step was opened")
    assert manager.pool.num_free_pages == free
    assert not a.is_busy and not b.is_busy
    manager.check()
    with manager.transaction([QueryRange(a, commit=True)]) as plan:  # and nothing is left behind
        mark_written(manager, plan)
    assert live(a) == [0, 4, 5]
