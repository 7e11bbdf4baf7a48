"""Running the toy engine in parts, for tests of what may happen to a video between two steps."""

from __future__ import annotations

import numpy as np

from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import ChunkOutput, EngineOutput, VideoRequest
from tests.engine.latent_bytes import video_of
from tests.engine.toy_model import FRAMES_PER_CHUNK

STEPS_PER_CHUNK = 3
"""Two denoise steps and a commit pass."""


def request(name: str, chunks: int = 4, **fields: object) -> VideoRequest:
    """A video of so many chunks, with the prompt "1" unless told."""
    given: dict[str, object] = {"prompt": "1", "num_frames": chunks * FRAMES_PER_CHUNK} | fields
    return VideoRequest(name, **given)  # type: ignore[arg-type]


def steps(engine: Engine, number: int) -> list[EngineOutput]:
    """What comes out of so many steps."""
    return [output for _ in range(number) for output in engine.step()]


def rest(engine: Engine) -> list[EngineOutput]:
    """What comes out until nothing is left to do."""
    return list(engine.run())


def alone(video: VideoRequest, **settings: object) -> np.ndarray:
    """The frames of a video that nothing happens to."""
    from tests.engine.toy_model import toy_engine

    engine = toy_engine(**settings)  # type: ignore[arg-type]
    engine.submit(video)
    return video_of(rest(engine), video.id)


def chunks_of(outputs: list[EngineOutput], name: str) -> list[int]:
    """Indices of the chunks of one video that came out."""
    return [output.chunk_index for output in outputs if isinstance(output, ChunkOutput) and output.request_id == name]


def state(engine: Engine, name: str) -> str:
    """The state of one video; "gone" if the engine does not know it."""
    return next((video.state for video in engine.videos() if video.id == name), "gone")
