"""Settings that cannot work are refused where they are made."""

from __future__ import annotations

import pytest

from pagedvid.engine.requests import EarlierPrompt, VideoRequest
from pagedvid.errors import ConfigError
from tests.engine.toy_model import toy_engine


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": "fair"}, r"policy is 'fair'; allowed are fcfs, round_robin"),
        ({"max_batch_tokens": 0}, r"max_batch_tokens is 0; it must be at least 1"),
        ({"max_concurrent": 0}, r"max_concurrent is 0; it must be at least 1"),
        ({"num_denoise_steps": -1}, r"num_denoise_steps is -1; it must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        toy_engine(**settings)


@pytest.mark.parametrize("name", ["max_batch_tokens", "max_concurrent", "num_denoise_steps"])
@pytest.mark.parametrize("value", [8.0, True, "8"])
def test_settings_are_whole_numbers(name, value):
    with pytest.raises(ConfigError, match=f"{name} is .*; it must be a whole number"):
        toy_engine(**{name: value})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 0}, "num_frames of request 'b' is 0; it must be at least 1"),
        ({"num_frames": -3}, "num_frames of request 'b' is -3"),
        ({"num_frames": 8.0}, r"num_frames of request 'b' is 8\.0, of type float"),
        ({"seed": 1.5}, r"seed of request 'b' is 1\.5"),
        ({"id": 7}, "id of a request is 7, of type int; give text such as 'a'"),
        ({"prompt": ["red"]}, "prompt of a request is .*; give text such as"),
    ],
)
def test_requests_that_nothing_can_be_made_of(fields, message):
    with pytest.raises(ConfigError, match=message):
        VideoRequest(**{"id": "b", "prompt": "red", "num_frames": 8, **fields})


def test_the_smallest_settings_are_allowed():
    engine = toy_engine(max_batch_tokens=1, policy="round_robin", max_concurrent=1, num_denoise_steps=1)
    assert toy_engine().max_concurrent is None and engine.max_concurrent == 1


def steered(*prompts: tuple[int, str]) -> tuple[list[tuple[int, str]], str]:
    """What a request for "a" has had, and has, after these prompts from these frames on."""
    request = VideoRequest("v", "a", 8)
    for frame, prompt in prompts:
        request = request.steered(prompt, frame)
    return [(it.until_frame, it.prompt) for it in request.earlier_prompts], request.prompt


@pytest.mark.parametrize(
    ("prompts", "earlier", "present"),
    [
        ([(4, "b")], [(4, "a")], "b"),
        ([(4, "b"), (10, "c")], [(4, "a"), (10, "b")], "c"),
        ([(4, "b"), (6, "b")], [(4, "a")], "b"),  # it shows already
        ([(0, "b")], [], "b"),  # the other one never showed
        ([(4, "b"), (4, "c")], [(4, "a")], "c"),
        ([(4, "b"), (4, "a")], [], "a"),
        ([(4, "b"), (4, "c"), (4, "b"), (6, "a")], [(4, "a"), (6, "b")], "a"),
        ([(4, "b"), (8, "c"), (6, "d")], [(4, "a"), (6, "b")], "d"),  # before it came to the one from 8 on
        ([(4, "b"), (8, "c"), (2, "a")], [], "a"),
    ],
)
def test_prompts_that_showed_are_kept(prompts, earlier, present):
    assert steered(*prompts) == (earlier, present)


@pytest.mark.parametrize(
    ("earlier", "message"),
    [
        ([EarlierPrompt(4, "a"), EarlierPrompt(4, "b")], r"earlier_prompts of request 'v' end at the frames \[4, 4\]"),
        (["a"], r"earlier_prompts of request 'v'\[0\] is 'a', .*EarlierPrompt\(24, 'left 12'\)"),
    ],
)
def test_earlier_prompts_that_cannot_have_been(earlier, message):
    with pytest.raises(ConfigError, match=message):
        VideoRequest("v", "c", 8, earlier_prompts=earlier)


@pytest.mark.parametrize("frame", [0, -2, 4.0, None])
def test_an_earlier_prompt_ends_at_a_frame(frame):
    with pytest.raises(ConfigError, match="until_frame of an earlier prompt is"):
        EarlierPrompt(frame, "a")
