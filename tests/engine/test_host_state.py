"""The engine under whatever its process has set in PyTorch: the same frames."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import numpy as np
import pytest
import torch

from pagedvid.config.sections import CacheConfig, Config
from pagedvid.engine.requests import ChunkOutput, VideoRequest
from pagedvid.models.build import build_engine, resolve
from tests.test_host_state import STATES

CODECS = ("klt1.5/klt3", "hadamard4-g64")


def frames(codec: str, state: AbstractContextManager) -> np.ndarray:
    with state:
        engine = build_engine(resolve(Config(cache=CacheConfig(memory="16MiB", codec=codec))))
        engine.submit(VideoRequest("a", "a red circle moving left", 24))
        outputs = list(engine.run())
    assert all(isinstance(output, ChunkOutput) for output in outputs), outputs
    return np.concatenate([output.frames for output in outputs])


@lru_cache
def plain(codec: str) -> np.ndarray:
    return frames(codec, nullcontext())


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled:UserWarning")
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("state", sorted(STATES))
def test_frames_do_not_depend_on_the_host(state: str, codec: str) -> None:
    plain(codec)  # made before the state is entered
    assert torch.get_default_dtype() == torch.float32
    np.testing.assert_array_equal(frames(codec, STATES[state]()), plain(codec))
