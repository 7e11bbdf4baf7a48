"""Settings as a stage's model_config has them."""

from __future__ import annotations

import pytest

from pagedvid import ConfigError
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.integrations.vllm_omni.settings import PagedSettings


def test_plain_values():
    given = {"codecs": "int4/int2", "memory": "8GiB", "sessions": 3, "correction": "formula"}
    settings = PagedSettings.read({"pagedvid": given, "of others": 1})
    assert settings == PagedSettings(StreamCodecs("int4/int2"), "formula", memory=8 << 30, sessions=3)


def test_codecs_by_their_arguments():
    settings = PagedSettings.read({"pagedvid": {"codecs": {"history": "int2", "sink": "int8"}}})
    assert settings.codecs == StreamCodecs("int2", sink="int8")


def test_nothing_is_given():
    assert PagedSettings.read({}) == PagedSettings()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("int2", "give"),
        ({"codec": "int2"}, "unknown settings codec.*allowed are codecs"),
        ({"codecs": {"histori": "int2"}}, "codecs cannot be read"),
        ({"codecs": 2}, "give StreamCodecs"),
        ({"codecs": "int3"}, "int3"),
        ({"sessions": 0}, "at least 1"),
        ({"memory": "much"}, "much"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        PagedSettings.read({"pagedvid": given})
