"""The order of work as plain integers: against the recorded calls, and against its own promises."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import planned_peak_pages
from pagedvid.cache.window import Window
from pagedvid.engine.schedule import Range, Round, Schedule
from pagedvid.errors import ConfigError
from pagedvid.models.magi1.schedule import magi_schedule
from pagedvid.models.magi1.spec import SamplingConfig
from pagedvid.models.magi1.times import interval, step_length, times
from tests.models.magi1.recordings import CHUNK_FRAMES, ROLLOUTS, Rollout, tensors
from tests.models.specs import spec_of

TOKENS_PER_FRAME = 12


def schedule_of(rollout: Rollout) -> Schedule:
    num_frames, given_frames = rollout.data["final"].shape[1], rollout.num_prefix_frames
    return magi_schedule(rollout.sampling, CHUNK_FRAMES, rollout.num_steps, num_frames, given_frames)


def chunk_of(part: Range) -> int:
    assert list(part.frames) == list(range(part.frames[0], part.frames[0] + CHUNK_FRAMES))
    return part.frames[0] // CHUNK_FRAMES


def seen_chunks(round_: Round, part: Range) -> list[int]:
    """Every chunk whose keys the range sees, its own last."""
    return [*part.visible, *(chunk_of(round_.ranges[other]) for other in part.sees), chunk_of(part)]


@pytest.mark.parametrize("name", ["w1", "w4", "w4_prefix", "w4_distill"])
def test_every_range_sees_the_recorded_chunks_at_the_recorded_times(name: str):
    rollout = ROLLOUTS[name]
    rounds = list(schedule_of(rollout).rounds())
    assert len(rounds) == len(rollout.calls)
    for round_, call in zip(rounds, rollout.calls, strict=True):
        assert [part.noise_level for part in round_.ranges] == pytest.approx(call["t"], abs=1e-6)
        for part, (first, stop), y_index in zip(round_.ranges, call["k_range_chunks"], call["y_index"], strict=True):
            assert y_index == (-1 if part.role == "clean" else chunk_of(part))
            if part.role == "alone":
                assert (part.visible, part.sees) == ((), ()) and stop - first == 1
            else:
                assert seen_chunks(round_, part) == list(range(first, stop))
        assert list(round_.finished) == ([call["finished_chunk"]] if "finished_chunk" in call else [])


def test_a_guided_step_is_three_forwards_of_which_the_null_text_one_is_stored():
    rollout = ROLLOUTS["w4_cfg3"]
    rounds = list(schedule_of(rollout).rounds())
    for number, (round_, call) in enumerate(zip(rounds, rollout.calls, strict=True)):
        roles = {part.role for part in round_.ranges}
        assert roles <= ({"cond", "clean"}, {"null"}, {"uncond"})[number % 3]
        assert [part.noise_level for part in round_.ranges] == pytest.approx(call["t"], abs=1e-6)
        if number % 3 == 2:
            assert all((part.visible, part.sees, part.position) == ((), (), 0) for part in round_.ranges)
            assert [step.ranges for step in round_.advances] == [(i,) for i in range(len(round_.ranges))]
        else:
            seen = [seen_chunks(round_, part) for part in round_.ranges]
            assert seen == [list(range(*chunks)) for chunks in call["k_range_chunks"]]
            in_flight = [chunk_of(part) for part in round_.ranges if part.noise_level != 0.9999]
            assert [(hold.chunk, chunk_of(round_.ranges[hold.range])) for hold in round_.holds] == [
                (chunk, chunk) for chunk in in_flight
            ]
        has_clean_pass = number % 3 == 1 and round_.ranges[0].noise_level == 0.9999
        assert [part.commits for part in round_.ranges] == [has_clean_pass] + [False] * (len(round_.ranges) - 1)


@pytest.mark.parametrize(("num_steps", "mode", "key"), [(12, "16,16,8", "12.16-16-8"), (12, "8,16,16", "12.8-16-16")])
def test_twelve_steps_are_sixteen_less_one_in_every_quarter(num_steps: int, mode: str, key: str):
    recorded = tensors("schedules")
    assert list(times(num_steps, mode)) == recorded[f"ts.{key}"].tolist()
    intervals = recorded[f"interval.{key}"].tolist()
    assert [interval(num_steps, index, mode) for index in range(12)] == intervals
    assert [step_length(num_steps, index, mode) for index in range(12)] == [8 / taken for taken in intervals]


@pytest.mark.parametrize("num_steps", [4, 8, 16, 32, 64])
def test_times_are_bit_for_bit_those_of_the_original(num_steps: int):
    assert list(times(num_steps)) == tensors("schedules")[f"ts.{num_steps}"].tolist()
    assert step_length(num_steps, 1) == num_steps / 2


SAMPLINGS = st.builds(
    SamplingConfig,
    window_size=st.sampled_from([1, 2, 4]),
    cfg_number=st.sampled_from([1, 3]),
    noise2clean_kvrange=st.tuples(*[st.integers(1, 7)] * 4),
    clean_chunk_kvrange=st.integers(1, 3),
)


@given(SAMPLINGS, st.sampled_from([4, 8, 12]), st.integers(1, 30), st.integers(0, 10))
def test_every_chunk_is_denoised_in_order_and_pages_are_held_no_longer_than_needed(
    sampling: SamplingConfig, num_steps: int, num_frames: int, num_given: int
):
    schedule = magi_schedule(sampling, CHUNK_FRAMES, num_steps, num_frames, num_given)
    rounds = list(schedule.rounds())
    first, num_chunks = num_given // CHUNK_FRAMES, -(-(num_given + num_frames) // CHUNK_FRAMES)
    levels = times(num_steps)
    walked: dict[int, list[float]] = {}
    for round_ in rounds:
        for step in round_.advances:
            assert walked.setdefault(step.chunk, [0.0])[-1] == step.noise_level
            walked[step.chunk].append(step.next_noise_level)
    assert walked == {chunk: list(levels) for chunk in range(first, num_chunks)}
    assert [chunk for round_ in rounds for chunk in round_.finished] == list(range(first, num_chunks))
    assert schedule.num_commits == num_chunks - 1
    kept: set[int] = set()
    committed = 0
    for number, round_ in enumerate(rounds):
        for part in round_.ranges:
            assert set(part.visible or ()) <= kept
            if part.commits:
                assert chunk_of(part) == committed
                committed += 1
                kept.add(chunk_of(part))
        later = {index for following in rounds[number + 1 :] for part in following.ranges for index in part.visible}
        kept -= set(round_.drops)
        assert kept == {index for index in later if index < committed}
    assert not kept


@pytest.mark.parametrize(("window_size", "resident"), [(1, 4), (2, 3), (4, 1)])
@pytest.mark.parametrize("cfg_number", [1, 3])
def test_resident_chunks_are_bounded_by_the_look_back_however_long_the_video(window_size, resident, cfg_number):
    sampling = replace(SamplingConfig(), window_size=window_size, cfg_number=cfg_number)
    shape, codecs = KVShape(2, 2, 16), StreamCodecs("int2")
    for num_chunks in (10, 60):
        schedule = magi_schedule(sampling, CHUNK_FRAMES, 16, num_chunks * CHUNK_FRAMES)
        commits = schedule.planned_commits(TOKENS_PER_FRAME)
        peak = planned_peak_pages(shape, schedule.window, codecs, commits)
        assert peak == resident * shape.chunk_pages(CHUNK_FRAMES * TOKENS_PER_FRAME, codecs.steady)


@pytest.mark.parametrize(("num_steps", "window_size"), [(6, 4), (2, 1), (0, 4), (12, 5)])
def test_steps_that_cannot_be_dealt_out_are_refused(num_steps: int, window_size: int):
    with pytest.raises(ConfigError, match=rf"{num_steps} denoise steps cannot be dealt out .* engine.denoise_steps="):
        magi_schedule(replace(SamplingConfig(), window_size=window_size), 6, num_steps, 24)


def test_a_video_too_long_to_plan_is_refused():
    with pytest.raises(ConfigError, match="has 166666666667 chunks; at most 10000 can be planned"):
        magi_schedule(SamplingConfig(), 6, 8, 10**12)


def test_an_hour_is_planned_chunk_by_chunk():
    schedule = spec_of("magi-1-4.5b-distill").schedule(21_600, None, Window(1, 4))
    assert schedule.num_commits == len(schedule.commits) == 3_599
    assert schedule.commits[-1] == (6, (3_597,)) and schedule.max_range_frames == 6
