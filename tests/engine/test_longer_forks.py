"""Forks of a finished video that are longer than it: frames of its last chunk that lay beyond its end are theirs."""

from __future__ import annotations

import pytest

from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, Continuation, VideoRequest
from tests.engine.latent_bytes import video_of
from tests.engine.toy_model import FRAMES_PER_CHUNK, toy_engine


@pytest.mark.parametrize("checkpointed", ["", "a", "b"])
@pytest.mark.parametrize("more", [1, 2, 3, 7])
@pytest.mark.parametrize("num_frames", [2 * FRAMES_PER_CHUNK, 2 * FRAMES_PER_CHUNK + 1, 2 * FRAMES_PER_CHUNK + 2])
def test_they_have_every_frame_of_a_video_that_was_always_so_long(num_frames, more, checkpointed):
    engine = toy_engine(reproducible=True)
    engine.submit(VideoRequest("a", "1", num_frames, keep=True))
    engine.submit(VideoRequest("whole", "1", num_frames + more))
    outputs = list(engine.run())
    if checkpointed == "a":
        take_up_again(engine, "a")
    engine.fork("a", [Continuation("b", num_frames=num_frames + more)])
    if checkpointed == "b":
        take_up_again(engine, "b")
    later = list(engine.run())
    assert [output.is_last for output in later if isinstance(output, ChunkOutput)][-1]
    assert (video_of(later, "b") == video_of(outputs, "whole")[num_frames:]).all()
    assert sum(len(output.frames) for output in later) == more


def take_up_again(engine: Engine, id: str) -> None:
    snapshot = engine.checkpoint(id)
    engine.cancel(id)
    engine.restore(snapshot)
