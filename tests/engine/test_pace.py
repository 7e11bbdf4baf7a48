"""The measured pace of a device and what is refused by it. Times are made up from known ones."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from pagedvid.cache.window import Window
from pagedvid.engine import pace as pace_module
from pagedvid.engine.pace import BLOCK_STEPS, NUM_BLOCKS, SHARE_FOR_LIVE, LiveVideo, Pace, TokenSeconds, Work, refusal
from pagedvid.engine.schedule import Range, Round, Schedule
from tests.models.specs import spec_of

MIXES = [(1024, 0), (896, 128), (128, 128), (0, 256)]


def paced(seconds, num_steps=4 * BLOCK_STEPS, mixes=MIXES, seed=0):
    """`seconds`: of a step with so many denoise and commit tokens."""
    chance, pace = random.Random(seed), Pace()
    for step in range(num_steps):
        denoise, commit = chance.choice(mixes)
        pace.record(denoise, commit, seconds(step, denoise, commit))
    return pace


def test_nothing_is_known_before_a_block_is_full():
    assert Pace().token_seconds is None
    assert paced(lambda *_: 1.0, BLOCK_STEPS - 1).token_seconds is None
    assert paced(lambda *_: 1.0, BLOCK_STEPS).token_seconds is not None


def test_both_kinds_of_tokens_are_told_apart():
    found = paced(lambda _, denoise, commit: 2e-4 * denoise + 5e-4 * commit).token_seconds
    assert found.denoise == pytest.approx(2e-4)
    assert found.commit == pytest.approx(5e-4)


def test_noise_and_single_hiccups_hardly_matter():
    chance = random.Random(1)

    def seconds(step, denoise, commit):
        hiccup = 3.0 if step in (0, 70) else 0.0
        return (2e-4 * denoise + 5e-4 * commit) * chance.uniform(0.95, 1.05) + hiccup

    found = paced(seconds, 12 * BLOCK_STEPS).token_seconds
    assert found.denoise == pytest.approx(2e-4, rel=0.05)
    assert found.commit == pytest.approx(5e-4, rel=0.05)


def test_what_comes_back_again_and_again_is_part_of_the_pace():
    """Every fourth step decodes, which takes as long as the forward of that step."""
    found = paced(lambda step, denoise, commit: 1e-4 * denoise * (2 if step % 4 == 3 else 1), mixes=[(1000, 0)])
    assert found.token_seconds.denoise == pytest.approx(1.25e-4)


def test_kinds_that_cannot_be_told_apart_get_the_same_time():
    only_denoise = paced(lambda *_: 0.1, mixes=[(1000, 0)]).token_seconds
    one_mixture = paced(lambda *_: 0.1, mixes=[(800, 200)]).token_seconds
    assert only_denoise == one_mixture == TokenSeconds(pytest.approx(1e-4), pytest.approx(1e-4))


def test_times_are_never_negative():
    """Commit tokens ride along for nothing, and their steps are even shorter."""
    found = paced(lambda _, denoise, commit: 0.1 if commit else 0.2, mixes=[(1000, 0), (1000, 100)]).token_seconds
    assert found.denoise > 0 and found.commit > 0


def test_old_steps_are_forgotten():
    pace = paced(lambda *_: 0.1, 100 * BLOCK_STEPS, mixes=[(1000, 0)])
    for _ in range((NUM_BLOCKS // 2 + 1) * BLOCK_STEPS):
        pace.record(1000, 0, 0.4)
    assert pace.token_seconds.denoise == pytest.approx(4e-4)


def test_steps_without_tokens_do_not_count():
    pace = Pace()
    for _ in range(BLOCK_STEPS):
        pace.record(0, 0, 1.0)
    assert pace.token_seconds is None


@pytest.mark.parametrize(
    ("name", "steps", "denoise", "commit"),
    [
        ("demo", None, 8, 1),
        ("demo", 4, 4, 1),
        ("self-forcing", None, 4, 1),
        ("skyreels-v2-1.3b", None, 60, 2),  # two branches
        ("magi-1-4.5b", None, 97, 1),  # three forwards a step, and a second clean pass, which is not stored
    ],
)
@pytest.mark.parametrize("num_chunks", [6, 40])
def test_work_of_the_models_schedules(name, steps, denoise, commit, num_chunks):
    """The last chunk of a video has no reader and no clean pass, which shows in a short one."""
    spec = spec_of(name)
    geometry = spec.geometry
    schedule = spec.schedule(num_chunks * geometry.frames_per_chunk, steps, Window(0, 4))
    work = Work.of(schedule, geometry.frames_per_chunk, geometry.tokens_per_frame)
    share = 5 / 6 if num_chunks == 6 else 1.0
    assert work.commit_tokens == pytest.approx(share * commit * geometry.tokens_per_frame)
    assert work.denoise_tokens == pytest.approx(denoise * geometry.tokens_per_frame, rel=0.002)


def test_work_of_a_single_chunk():
    rounds = [Round((Range(range(4), level),)) for level in (1.0, 0.5)] + [
        Round((Range(range(4), 0.2),), finished=(0,))
    ]
    schedule = Schedule(lambda: iter(rounds), Window(0, 1), num_commits=0, max_range_frames=4)
    assert Work.of(schedule, frames_per_chunk=4, tokens_per_frame=10) == Work(30, 0)


def test_a_long_schedule_is_not_walked_to_its_end():
    def rounds():
        for chunk in range(pace_module.COUNTED_CHUNKS):
            yield Round((Range(range(chunk, chunk + 1), 1.0),), finished=(chunk,))
        raise AssertionError("one round too many")

    schedule = Schedule(rounds, Window(0, 1), num_commits=0, max_range_frames=1)
    assert Work.of(schedule, frames_per_chunk=1, tokens_per_frame=7) == Work(7, 0)


LIVE = LiveVideo(Work(denoise_tokens=100, commit_tokens=10), frames_per_second=16.0, latent_frames_per_second=4.0)
"""At the pace below it takes 4 x (100 + 2 x 10) x 6.25e-4 s = 0.3 of the device."""
PACE = paced(lambda _, denoise, commit: 6.25e-4 * (denoise + 2 * commit))


def at_speed(frames_per_second):
    return replace(LIVE, frames_per_second=frames_per_second, latent_frames_per_second=frames_per_second / 4)


def test_the_share_of_a_live_video():
    assert PACE.token_seconds.share(LIVE.work, 4.0) == pytest.approx(0.3)
    assert PACE.token_seconds.share(LIVE.work, 8.0) == pytest.approx(0.6)


def test_one_more_is_refused_with_the_numbers():
    assert refusal(PACE, LIVE, [LIVE]) is None
    text = refusal(PACE, LIVE, [LIVE, LIVE, LIVE])
    assert "at 16 frames per second needs 0.30 of the device" in text
    assert f"0.90 of the {SHARE_FOR_LIVE:g} that live videos may use are taken by 3 of them" in text
    assert "leave out live_frames_per_second" in text and "ask for at most" not in text


def test_a_slower_one_that_would_fit_is_offered():
    admitted = [LIVE, LIVE, at_speed(8.0)]
    assert "ask for at most 8 frames per second" in refusal(PACE, LIVE, admitted)
    assert refusal(PACE, at_speed(7.9), admitted) is None


def test_the_only_live_video_is_never_refused():
    assert refusal(PACE, at_speed(1000.0), []) is None


def test_everyone_is_admitted_while_the_pace_is_unknown(caplog):
    with caplog.at_level("INFO", logger="pagedvid"):
        assert refusal(Pace(), LIVE, [LIVE] * 100) is None
    assert "admitted unchecked" in caplog.text
