"""What may happen to one video of any model between two steps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pagedvid.engine.checkpoint_file import Origin, load_checkpoint, save_checkpoint
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import Continuation, EngineOutput, VideoRequest
from tests.engine.latent_bytes import video_of
from tests.engine.verbs import steps

NewEngine = Callable[[], Engine]


def moved(new_engine: NewEngine, request: VideoRequest, after: int) -> list[EngineOutput]:
    """What comes out if the video goes on in another engine after so many steps; no page is left there."""
    first, second = new_engine(), new_engine()
    first.submit(request)
    outputs = steps(first, after)
    second.restore(first.checkpoint(request.id))
    outputs += second.run()
    assert second.cache.pool.num_used_pages == 0
    return outputs


def forked(new_engine: NewEngine, request: VideoRequest, after: int) -> list[EngineOutput]:
    """What comes out if the video gets a fork "b" after so many steps; no page is left."""
    engine = new_engine()
    engine.submit(request)
    outputs = steps(engine, after)
    engine.fork(request.id, [Continuation("b")])
    outputs += engine.run()
    assert engine.cache.pool.num_used_pages == 0
    return outputs


def through_a_file(new_engine: NewEngine, request: VideoRequest, after: int, path: Path) -> np.ndarray:
    """The frames of a video that goes on in another engine from a checkpoint's file."""
    first, second = new_engine(), new_engine()
    first.submit(request)
    outputs = steps(first, after)
    origin = Origin("tiny", first.model.geometry, first.cache.spec, first.window, None, {}, {})
    save_checkpoint(path, first.checkpoint(request.id), origin)
    second.restore(load_checkpoint(path, origin))
    return video_of([*outputs, *second.run()], request.id)


def forks_of_given_chunks(engine: Engine, request: VideoRequest, num_commits: int) -> list[EngineOutput]:
    """What comes out if the video "a" gets forks "b" and "c", another seed's, before its given chunks are stored, which
    takes so many steps: all three hold the same pages then, none of them copied."""
    engine.submit(request)
    engine.fork("a", [Continuation("b"), Continuation("c", seed=9)])
    outputs = steps(engine, num_commits)
    used = engine.cache.pool.num_used_pages
    assert used > 0
    assert {it.id: (it.own_pages, it.shared_pages) for it in engine.videos()} == {id: (0, used) for id in "abc"}
    outputs += engine.run()
    assert engine.cache.pool.num_used_pages == 0
    return outputs
