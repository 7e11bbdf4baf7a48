"""Settings that cannot work are refused where they are made."""

from __future__ import annotations

import pytest

from pagedvid.engine.requests import EngineSettings
from pagedvid.errors import ConfigError


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
        EngineSettings(**settings)


def test_the_smallest_settings_are_allowed():
    settings = EngineSettings(max_batch_tokens=1, policy="round_robin", max_concurrent=1, num_denoise_steps=1)
    assert EngineSettings().max_concurrent is None and settings.max_concurrent == 1
