"""The order of work, as data."""

from __future__ import annotations

import pytest

from pagedvid.cache.window import Window
from pagedvid.models.worldplay.memory import MEMORY_8B, MEMORY_WAN
from pagedvid.models.worldplay.schedule import rebuilt_memory, schedule_without_trajectory, timesteps_8b, timesteps_wan
from tests.models.specs import spec_of
from tests.models.worldplay.recordings import NUM_CHUNKS, VARIANTS, cameras, inputs, memory_frames


def recorded_schedule(variant: str):
    steps = timesteps_8b(4) if variant == "hy8b" else timesteps_wan(4)
    sizes = [len(memory_frames(variant, chunk)) for chunk in range(NUM_CHUNKS)]
    return rebuilt_memory(sizes, lambda chunk: memory_frames(variant, chunk), steps, cameras(variant))


def test_timesteps_are_the_recorded_ones():
    assert timesteps_8b(4) == pytest.approx([*inputs("hy8b")["timesteps"].tolist(), 0.0], abs=1e-3)
    assert timesteps_wan(4) == pytest.approx(inputs("wan5b")["timesteps"].tolist(), abs=1e-3)
    assert [t / 1000 for t in timesteps_8b(4)] == pytest.approx(inputs("hy8b")["sigmas"].tolist(), abs=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_memory_pass_before_every_chunk_but_the_first(variant):
    rounds = list(recorded_schedule(variant).rounds())
    assert [round_.ranges[0].commits for round_ in rounds] == [False] * 4 + [True, *[False] * 4] * 7
    passes = [round_.ranges[0] for round_ in rounds if round_.ranges[0].commits]
    for chunk, part in enumerate(passes, start=1):
        assert part.frames == memory_frames(variant, chunk) and part.visible == () and part.noise_level == 14.0
    assert [chunk for round_ in rounds for chunk in round_.finished] == list(range(NUM_CHUNKS))


@pytest.mark.parametrize("variant", VARIANTS)
def test_denoise_steps_see_the_newest_memory_which_is_then_dropped(variant):
    rounds = list(recorded_schedule(variant).rounds())
    for number, round_ in enumerate(rounds):
        chunk, step = (0, number) if number < 4 else (1 + (number - 4) // 5, (number - 4) % 5 - 1)
        if step >= 0:
            assert round_.ranges[0].visible == ((chunk - 1,) if chunk else ())
        assert round_.drops == ((chunk - 1,) if chunk and step == 3 else ())


@pytest.mark.parametrize("variant", VARIANTS)
def test_latents_are_forgotten_once_and_never_needed_again(variant):
    forgotten: list[int] = []
    for round_ in recorded_schedule(variant).rounds():
        assert not {frame // 4 for part in round_.ranges for frame in part.frames} & set(forgotten)
        forgotten += round_.forgets
    assert sorted(forgotten) == list(range(NUM_CHUNKS)) and len(set(forgotten)) == len(forgotten)


@pytest.mark.parametrize(("variant", "policy"), [("hy8b", MEMORY_8B), ("wan5b", MEMORY_WAN)])
def test_what_is_stored_does_not_depend_on_the_trajectory(variant, policy):
    standing = schedule_without_trajectory(policy, 4 * NUM_CHUNKS, (1000.0, 500.0, 0.0))
    assert standing.commits == recorded_schedule(variant).commits
    assert standing.max_range_frames == recorded_schedule(variant).max_range_frames


def test_the_planned_schedule_has_the_model_s_own_number_of_steps():
    schedule = spec_of("hy-worldplay-8b").schedule
    assert len(list(schedule(8, None, Window(1, 4)).rounds())) == 9
    assert len(list(schedule(8, 2, Window(1, 4)).rounds())) == 5
