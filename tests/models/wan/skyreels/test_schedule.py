"""SkyReels-V2's staggered order of work as plain integers: against the library's rows, and against its own promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.schedule import Range, Round, Schedule
from pagedvid.errors import ConfigError
from pagedvid.models.wan.skyreels.schedule import skyreels_schedule
from pagedvid.models.wan.skyreels.spec import SkyReelsSettings
from tests.models.wan.skyreels.dense_asynchronous import published_rows

SIZE = 3
"""Frames of a block."""
GEOMETRY = ModelGeometry(2, 2, 2, 16, tokens_per_frame=15, frames_per_chunk=SIZE, branches=("cond", "uncond"))


def settings_of(sinks: int, recents: int, **changes) -> SkyReelsSettings:
    window = {"sink_frames": sinks * SIZE, "window_frames": (sinks + recents + 1) * SIZE}
    return SkyReelsSettings(frames_per_chunk=SIZE, **{**window, **changes})


def schedule_of(settings: SkyReelsSettings, num_blocks: int, num_steps: int, num_given: int = 0) -> Schedule:
    return skyreels_schedule(settings, GEOMETRY, num_blocks * SIZE, num_steps, Window(7, 7), num_given)


def block_of(part: Range) -> int:
    assert part.frames == range(part.frames[0], part.frames[0] + SIZE)
    return part.frames[0] // SIZE


@st.composite
def cases(draw):
    """(sinks, recent blocks, steps, ar_step, given blocks, blocks)."""
    sinks, recents, num_steps = draw(st.integers(0, 2)), draw(st.integers(1, 4)), draw(st.integers(1, 9))
    num_given, num_blocks = draw(st.integers(0, 4)), draw(st.integers(1, 9))
    fits = num_given + num_blocks <= sinks + recents + 1
    least = 1 if fits else num_steps // (recents + 1) + 1
    return sinks, recents, num_steps, draw(st.integers(least, num_steps + 2)), num_given, num_blocks


def check_round(round_: Round, places: list[int], num_steps: int, window: list[int], kept: set[int]) -> list[int]:
    """The blocks of a round are those of a published row that are not kept, and see those of its window."""
    half = len(round_.ranges) // 2
    carried = [block for block in window if block not in kept]
    for branch, start in (("cond", 0), ("uncond", half)):
        for number, part in enumerate(round_.ranges[start : start + half]):
            place = places[block_of(part)]
            assert (part.branch, part.role, block_of(part)) == (branch, branch, carried[number])
            assert part.noise_level == pytest.approx(max(0.0, 1 - (place - 1) / num_steps))
            assert part.commits == (place > num_steps) and (number == 0 or not part.commits)
            assert list(part.visible) == [block for block in window if block in kept]
            assert part.sees == tuple(range(start, start + number)) and part.position is None
    return carried


@given(cases())
def test_every_round_is_a_row_of_the_published_matrix(case):
    sinks, recents, num_steps, ar_step, num_given, num_blocks = case
    schedule = schedule_of(settings_of(sinks, recents, ar_step=ar_step), num_blocks, num_steps, num_given)
    rounds = list(schedule.rounds())
    kept = set(range(num_given))
    assert [(block_of(part), part.commits) for round_ in rounds[:num_given] for part in round_.ranges] == [
        (block, True) for block in range(num_given) for _ in range(2)
    ]
    total = num_given + num_blocks
    window_blocks = total if total <= sinks + recents + 1 else recents + 1
    rows = published_rows(total, num_given, torch.arange(num_steps), window_blocks, ar_step)
    for round_, (places, (first, stop)) in zip(rounds[num_given:], rows, strict=True):
        window = [block for block in range(stop) if (block < sinks or block >= first) and places[block] > 0]
        carried = check_round(round_, places, num_steps, window, kept)
        moving = [block for block in carried if places[block] <= num_steps]
        half = len(round_.ranges) // 2
        assert [(move.chunk, move.ranges) for move in round_.advances] == [
            (block, (carried.index(block), half + carried.index(block))) for block in moving
        ]
        assert list(round_.finished) == [block for block in moving if places[block] == num_steps][:1]
        kept |= {block for block in carried if places[block] > num_steps}
    assert [block for round_ in rounds for block in round_.finished] == list(range(num_given, num_given + num_blocks))


@given(cases())
def test_pages_are_held_as_long_as_they_are_read(case):
    sinks, recents, num_steps, ar_step, num_given, num_blocks = case
    schedule = schedule_of(settings_of(sinks, recents, ar_step=ar_step), num_blocks, num_steps, num_given)
    rounds = list(schedule.rounds())
    assert schedule.num_commits == len(schedule.commits) == num_given + num_blocks - 1
    assert schedule.first_frame == num_given * SIZE and schedule.max_range_frames == SIZE
    held, stored, begun, gone = set(), 0, set(), set()
    for number, round_ in enumerate(rounds):
        assert all(set(part.visible) == held for part in round_.ranges)
        begun |= {block_of(part) for part in round_.ranges}
        assert not gone & {block_of(part) for part in round_.ranges}
        if round_.ranges[0].commits:
            held.add(stored)
            stored += 1
            held = {block for block in held if schedule.window.keeps(block, stored)}
        assert not {block for block in round_.drops if block < sinks}
        held -= set(round_.drops)
        gone |= set(round_.forgets)
        later = {index for following in rounds[number + 1 :] for part in following.ranges for index in part.visible}
        assert {block for block in held if block >= sinks} <= later
    assert begun == gone


@pytest.mark.parametrize(("ar_step", "in_flight", "stored"), [(8, 4, 2), (10, 4, 2), (15, 3, 3), (30, 2, 4)])
def test_the_more_blocks_are_in_flight_the_fewer_are_stored(ar_step: int, in_flight: int, stored: int):
    """The published sizes: 30 steps, and a window of 25 frames whose first block is a sink. Towards the end of the
    video no block begins, none leaves, and the window fills with stored ones."""
    geometry = replace(GEOMETRY, frames_per_chunk=5)
    schedule = skyreels_schedule(SkyReelsSettings(ar_step=ar_step), geometry, 200, None, Window(1, 1))
    assert max(len(round_.ranges) // 2 for round_ in schedule.rounds()) == in_flight
    held, counts = set(), []
    for block, (_, drops) in enumerate(schedule.commits):
        held = {kept for kept in held - set(drops) | {block} if schedule.window.keeps(kept, block + 1)}
        counts.append(len(held))
    assert counts[10:30] == [stored] * 20 and counts[-1] == max(counts) == 4


def test_a_window_without_room_for_a_clean_block_is_refused():
    settings = SkyReelsSettings(ar_step=7)
    geometry = replace(GEOMETRY, frames_per_chunk=5)
    message = (
        "ar_step is 7; with 30 denoise steps 4 later blocks have begun when one is clean, and the window of 25 latent "
        "frames has room for 3. Set it to 8 or more, use fewer denoise steps, or make no video of more than 25 latent "
        r"frames \(given ones count\)"
    )
    for num_frames, num_given in ((26, 0), (25, 1)):
        with pytest.raises(ConfigError, match=message):
            skyreels_schedule(settings, geometry, num_frames, None, Window(1, 1), num_given)
    assert skyreels_schedule(settings, geometry, 25, None, Window(1, 1)).num_commits == 4
    assert skyreels_schedule(settings, geometry, 26, 27, Window(1, 1)).num_commits == 5
    assert skyreels_schedule(replace(settings, ar_step=8), geometry, 26, None, Window(1, 1)).num_commits == 5


def test_without_ar_step_one_block_follows_another():
    rounds = list(schedule_of(settings_of(1, 1), 3, 4).rounds())
    assert {len(round_.ranges) for round_ in rounds} == {2} and len(rounds) == 3 * 4 + 2


def test_a_negative_ar_step_is_refused():
    with pytest.raises(ConfigError, match="ar_step is -1; it must be at least 0"):
        SkyReelsSettings(ar_step=-1)


def test_a_video_too_long_to_plan_is_refused():
    with pytest.raises(ConfigError, match="chunks; at most 10000 can be planned"):
        schedule_of(settings_of(1, 2, ar_step=5), 10_001, 5)
