"""What may happen to a video on its way, where several chunks are in flight: snapshots, forks, and more frames."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import EngineOutput
from pagedvid.errors import StateError
from tests.engine.latent_bytes import video_of
from tests.engine.verbs import steps
from tests.models.magi1.recordings import ROLLOUTS, engine_of, recorded_model
from tests.models.on_the_way import forked, moved

ROLLOUT = ROLLOUTS["w4"]
REQUEST = ROLLOUT.request("a")


def new_engine() -> Engine:
    return engine_of(recorded_model(ROLLOUT), ROLLOUT.num_steps, reproducible=True)


def frames(outputs: list[EngineOutput], id: str = "a") -> torch.Tensor:
    return torch.from_numpy(video_of(outputs, id))


def undisturbed(num_frames: int) -> torch.Tensor:
    engine = new_engine()
    engine.submit(replace(REQUEST, num_frames=num_frames))
    return frames(list(engine.run()))


@pytest.mark.parametrize("after", [1, 5, 9, 13])
def test_a_video_goes_on_in_another_engine(after: int) -> None:
    assert torch.equal(frames(moved(new_engine, REQUEST, after)), undisturbed(REQUEST.num_frames))


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_fork_carries_the_chunks_in_flight_with_it(after: int) -> None:
    outputs = forked(new_engine, REQUEST, after)
    whole = undisturbed(REQUEST.num_frames)
    assert torch.equal(frames(outputs), whole)
    assert torch.equal(frames(outputs, "b"), whole[len(whole) - len(frames(outputs, "b")) :])


@pytest.mark.parametrize("after", [1, 3, 5])
def test_a_video_becomes_longer_while_its_end_is_not_in_sight(after: int) -> None:
    engine, longer = new_engine(), REQUEST.num_frames + 7
    engine.submit(REQUEST)
    outputs = steps(engine, after)
    engine.extend("a", longer)
    outputs += engine.run()
    assert torch.equal(frames(outputs), undisturbed(longer))
    assert engine.cache.pool.num_used_pages == 0


def test_a_finished_video_does_not_go_on() -> None:
    engine = new_engine()
    engine.submit(replace(REQUEST, keep=True))
    list(engine.run())
    with pytest.raises(StateError, match="worked on in another order"):
        engine.extend("a", REQUEST.num_frames + 7)
