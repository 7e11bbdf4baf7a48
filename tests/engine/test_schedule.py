"""Rounds as data: what is read off them, and schedules that contradict themselves."""

from __future__ import annotations

import pytest

from pagedvid.cache.window import Commit, Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Range, Round, planned, with_endings
from pagedvid.errors import ConfigError
from pagedvid.models.common.chunk_by_chunk import chunk_by_chunk

KEEP = Window(0, 100)


def part(
    chunk: int, visible: tuple[int, ...] = (), commits: bool = False, frames: int = 2, branch: str = "cond"
) -> Range:
    return Range(range(2 * chunk, 2 * chunk + frames), 0.5, branch=branch, visible=visible, commits=commits)


def test_endings_are_the_last_reader_and_the_last_carrier():
    made = [
        Round((part(0, commits=True),)),
        Round((part(0), part(1, (0,)))),
        Round((part(1, commits=True), part(2, (0,)))),
        Round((part(2, (1,)),)),
        Round((part(3, commits=True),)),
    ]
    ended = with_endings(lambda: iter(made), 2, KEEP)
    rounds = list(ended())
    assert list(ended()) == rounds  # every iterator starts anew
    assert [round_.drops for round_ in rounds] == [(), (), (0,), (1,), (2,)]
    assert [round_.forgets for round_ in rounds] == [(), (0,), (1,), (2,), (3,)]
    schedule = planned(lambda: iter(rounds), KEEP, first_frame=1)
    assert schedule.commits == ((2, ()), (2, ()), (2, (0, 1)))
    assert (schedule.num_commits, schedule.max_range_frames, schedule.first_frame) == (3, 2, 1)
    assert schedule.planned_commits(10) == (Commit(20), Commit(20), Commit(20, (0, 1)))


@pytest.mark.parametrize(("recents", "drops"), [(1, [(), (), (), (2,), ()]), (2, [(), (), (1,), (2,), ()])])
def test_sinks_and_what_the_window_has_let_go_of_are_not_dropped(recents, drops):
    """Chunk 1 is last read when chunk 2 is stored; a window of one recent chunk lets go of it then."""
    made = [
        Round((part(0, commits=True),)),
        Round((part(1, (0,), commits=True),)),
        Round((part(2, (0, 1), commits=True),)),
        Round((part(3, (0, 2)),)),
        Round((part(3),)),
    ]
    schedule = planned(with_endings(lambda: iter(made), 2, Window(1, recents)), Window(1, recents))
    assert [round_.drops for round_ in schedule.rounds()] == drops and schedule.num_commits == 3


def test_branches_that_store_together_count_once():
    def both(chunk: int, visible: tuple[int, ...] = (), commits: bool = False) -> Round:
        return Round(tuple(part(chunk, visible, commits, branch=branch) for branch in ("cond", "uncond")))

    made = [both(0, commits=True), both(1, (0,)), both(1, (0,), commits=True), both(2, (1,))]
    schedule = planned(with_endings(lambda: iter(made), 2, KEEP), KEEP)
    assert schedule.commits == ((2, ()), (2, ()))
    assert [round_.drops for round_ in schedule.rounds()] == [(), (), (0,), (1,)]


def test_rounds_are_made_one_by_one_and_never_held():
    held, most = 0, 0

    class Counted(Round):
        def __del__(self) -> None:
            nonlocal held
            held -= 1

    def rounds():
        nonlocal held, most
        for chunk in range(200):
            held += 1
            most = max(most, held)
            yield Counted((part(chunk, (chunk - 1,) if chunk else (), commits=True),))

    schedule = planned(with_endings(rounds, 2, KEEP), KEEP)
    assert schedule.num_commits == 200 and schedule.commits[150] == (2, (148,))
    assert sum(1 for _ in schedule.rounds()) == 200 and most <= 4


def test_a_memory_that_is_rebuilt_is_dropped_before_the_next_one():
    rounds = [
        Round((part(0, commits=True, frames=4),)),
        Round((part(2, (0,)),), drops=(0,)),
        Round((part(0, commits=True, frames=6),)),
        Round((part(3, (1,)),), drops=(1,)),
    ]
    schedule = planned(lambda: iter(rounds), Window(0, 1, "window"))
    assert schedule.commits == ((4, ()), (6, (0,))) and schedule.max_range_frames == 6


@pytest.mark.parametrize(
    "wrong",
    [
        [Round((part(0, (0,)),))],
        [Round((part(0, commits=True),), drops=(0,)), Round((part(1, (0,)),))],
        [Round((part(0, commits=True), part(1, commits=True)))],
        [Round((part(0, commits=True),)), Round((part(1),), drops=(0,)), Round((part(1),), drops=(0,))],
        [Round((part(0, commits=True), part(0, branch="uncond")))],
    ],
    ids=["never committed", "dropped before", "two commits", "dropped twice", "one branch alone"],
)
def test_schedules_that_contradict_themselves_are_refused(wrong):
    with pytest.raises(ConfigError, match=rf"round {len(wrong) - 1} commits \d chunks .* kept are"):
        planned(lambda: iter(wrong), KEEP)


def test_chunk_by_chunk_is_what_it_says():
    geometry = ModelGeometry(2, 4, 2, 8, tokens_per_frame=7, frames_per_chunk=3, branches=("cond", "uncond"))
    schedule = chunk_by_chunk(geometry, num_frames=4, levels=(1.0, 0.5, 0.0), window=Window(1, 2))
    rounds = list(schedule.rounds())
    walked = [(round_.ranges[0].frames, round_.ranges[0].noise_level, round_.finished) for round_ in rounds]
    first, second = range(0, 3), range(3, 6)
    assert walked == [
        (first, 1.0, ()),
        (first, 0.5, (0,)),
        (first, 0.0, ()),
        (second, 1.0, ()),
        (second, 0.5, (1,)),
    ]
    for round_ in rounds:
        assert [(part.role, part.branch) for part in round_.ranges] == [("cond", "cond"), ("uncond", "uncond")]
        assert all(part.commits == (part.noise_level == 0.0) for part in round_.ranges)
        assert len(round_.advances) == (not round_.ranges[0].commits)
    assert (schedule.num_commits, schedule.commits, schedule.window) == (1, None, Window(1, 2))
    assert schedule.planned_commits(7) is None


@pytest.mark.parametrize(
    ("num_given", "frames"), [(0, [0, 2, 2, 2, 4, 4, 4, 6, 6]), (1, [0, 0, 2, 2, 2, 4, 4, 4, 6, 6])]
)
def test_what_takes_over_counts_from_the_next_chunk_on(num_given, frames):
    geometry = ModelGeometry(1, 1, 1, 8, tokens_per_frame=4, frames_per_chunk=2)
    schedule = chunk_by_chunk(geometry, 5, (1.0, 0.5, 0.0), KEEP, num_prefix_chunks=num_given)
    assert [schedule.frames_begun(num_rounds, 2) for num_rounds in range(len(frames))] == frames
    assert len(list(schedule.rounds())) == len(frames) - 1


def test_chunks_in_flight_have_begun():
    made = [Round((part(0),)), Round((part(0), part(1))), Round((part(1), part(2))), Round((part(0, commits=True),))]
    schedule = planned(lambda: iter(made), KEEP)
    assert [schedule.frames_begun(num_rounds, 2) for num_rounds in range(5)] == [0, 2, 4, 6, 6]
