"""A video that went through a checkpoint goes on in another engine to the last bit as if it had never stopped."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.engine.checkpoint_file import Origin, load_checkpoint, save_checkpoint
from pagedvid.engine.engine import Engine
from pagedvid.errors import ConfigError
from tests.engine.latent_bytes import video_of
from tests.engine.test_decoders import RunningSum
from tests.engine.toy_model import ToyModel, assert_all_pages_free, toy_engine
from tests.engine.verbs import alone, request, rest, state, steps

SETTINGS = {"codecs": StreamCodecs("int4/int2", sink="int8", newest="bf16"), "reproducible": True, "window": (1, 2)}


def origin_of(engine: Engine) -> Origin:
    return Origin(engine.model.name, engine.model.geometry, engine.cache.spec, Window(1, 2), 2)


def through_a_file(path: Path, engine: Engine, other: Engine, id: str = "a") -> None:
    save_checkpoint(path, engine.checkpoint(id), origin_of(engine))
    engine.close()
    other.restore(load_checkpoint(path, origin_of(other)))


@pytest.mark.parametrize("model", [ToyModel, RunningSum])
@pytest.mark.parametrize("branches", [("cond",), ("cond", "uncond")])
@pytest.mark.parametrize("after", [0, 1, 3, 8, 11])
def test_a_video_goes_on(after, branches, model, tmp_path):
    """RunningSum has a decoder with state."""
    first, second = (toy_engine(model(branches=branches), **SETTINGS) for _ in range(2))
    first.submit(request("a", chunks=5))
    outputs = steps(first, after)
    through_a_file(tmp_path / "a", first, second)
    outputs += rest(second)
    expected = alone(request("a", chunks=5), model=model(branches=branches), **SETTINGS)
    np.testing.assert_array_equal(video_of(outputs, "a"), expected)
    assert_all_pages_free(second)


def test_a_finished_video_is_extended(tmp_path):
    first, second = toy_engine(**SETTINGS), toy_engine(**SETTINGS)
    first.submit(request("a", num_frames=7, keep=True))
    outputs = rest(first)
    through_a_file(tmp_path / "a", first, second)
    second.extend("a", 12)
    outputs += rest(second)
    np.testing.assert_array_equal(video_of(outputs, "a"), alone(request("a", num_frames=12), **SETTINGS))
    assert state(second, "a") == "finished"


def test_other_codecs_are_refused_and_nothing_is_queued(tmp_path):
    first, second = toy_engine(**SETTINGS), toy_engine(**{**SETTINGS, "codecs": StreamCodecs("int2")})
    first.submit(request("a"))
    steps(first, 3)
    with pytest.raises(ConfigError, match=r"cache\.codecs\.history 'int4/int2' \(here 'int2'\), cache\.codecs\.sink"):
        through_a_file(tmp_path / "a", first, second)
    assert not second.has_work
