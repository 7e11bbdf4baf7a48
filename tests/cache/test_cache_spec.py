"""What a spec decides by itself: the correction that suits its codecs, as on the command line."""

from __future__ import annotations

import pytest

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.config.sections import CacheConfig, Config
from pagedvid.errors import ConfigError
from pagedvid.models.build import resolve


@pytest.mark.parametrize(
    ("codec", "correction"),
    [
        ("int2", "measured"),
        ("int4/klt2", "measured"),
        ("token2-g64", "measured"),
        ("klt1.5/klt3", "off"),
        ("klt2/int4", "off"),
        ("bf16", "off"),
    ],
)
def test_the_correction_follows_the_codecs_as_on_the_command_line(codec, correction):
    for asked in ({}, {"correction": None}):
        spec = CacheSpec(1, 1, 64, codecs=StreamCodecs(codec), **asked)
        assert spec.correction == spec.shape.correction == correction
    assert resolve(Config(cache=CacheConfig(codec=codec))).config.cache.correction == correction
    assert spec == CacheSpec(1, 1, 64, codecs=StreamCodecs(codec), correction=correction)


def test_chunks_of_klt_keep_nothing_for_a_correction_that_was_not_asked_for():
    codecs = StreamCodecs("klt2")
    sizes = {
        correction: CacheSpec(1, 1, 64, codecs=codecs, correction=correction).shape.correction_bytes(codecs.steady)
        for correction in (None, "measured")
    }
    assert sizes == {None: 0, "measured": 4 + 2 * 64}


@pytest.mark.parametrize("codec", ["int2", "klt2"])
def test_a_correction_that_was_asked_for_stays(codec):
    for asked in ("off", "variance", "measured"):
        assert CacheSpec(1, 1, 64, codecs=StreamCodecs(codec), correction=asked).correction == asked


def test_an_unknown_correction_is_refused():
    with pytest.raises(ConfigError, match="correction is 'best'; allowed are off, formula, variance, measured"):
        CacheSpec(1, 1, 64, correction="best")
