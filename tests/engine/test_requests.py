"""Settings that cannot work are refused where they are made."""

from __future__ import annotations

import pytest

from pagedvid.engine.requests import VideoRequest
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
