"""Pictures and films to go on from, and what stands in for an engine."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from PIL import Image

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import FrameFormat, PrefixFormat
from pagedvid.engine.requests import VideoRequest
from pagedvid.output.given_frames import with_given_frames
from pagedvid.output.mp4 import VideoWriter

HEIGHT, WIDTH, SPEED = 32, 48, 8.0
STEP = 8
"""Between the grey levels of two frames: more than coding changes one."""


def engine(per_chunk: int = 4, per_latent: int = 1, max_chunks: int = 2, speed: float = SPEED, **format):
    """What is asked of an engine."""
    frames = FrameFormat(format.get("height", HEIGHT), format.get("width", WIDTH), speed, per_latent)
    model = SimpleNamespace(name="toy", prefix_format=lambda window: PrefixFormat(frames, per_chunk, max_chunks))
    return SimpleNamespace(model=model, window=Window(1, 1))


def picture(path, height=HEIGHT, width=WIDTH, **how):
    pixels = np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **how)
    return pixels


def film(path, num_frames, speed=SPEED, scale=1):
    """Frame n is grey n * STEP all over."""
    writer = VideoWriter(path, speed, scale)
    for number in range(num_frames):
        writer.add(np.full((1, HEIGHT, WIDTH, 3), number * STEP, dtype=np.uint8))
    writer.finish()
    writer.publish()
    return path


def frames_for(engine, **inputs):
    request = with_given_frames(VideoRequest("a", "1", 3, inputs={"other": 1, **inputs}), engine)
    assert request.inputs.keys() == {"other", "prefix"}
    return request.inputs["prefix"]["frames"].numpy()


def numbers(frames) -> list[int]:
    """The numbers of a film's frames."""
    assert frames.shape[1:] == (HEIGHT, WIDTH, 3) and frames.dtype == np.uint8
    levels = frames.reshape(len(frames), -1).astype(float).mean(axis=1) / STEP
    assert np.abs(levels - levels.round()).max() < 0.3
    return levels.round().astype(int).tolist()
