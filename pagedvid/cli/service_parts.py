"""What `pagedvid serve` puts together from a configuration: the model as clients see it, the sessions, the logs."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pagedvid.config.sections import frame_settings
from pagedvid.errors import ConfigError
from pagedvid.service.http.settings import ServedModel
from pagedvid.service.records import SessionLimits, VideoFormat

if TYPE_CHECKING:
    from pagedvid.engine.engine import Engine
    from pagedvid.engine.protocol import FrameFormat
    from pagedvid.models.build import RunSpec
    from pagedvid.service.checkpoint_files import OriginFiles
    from pagedvid.service.events import Event
    from pagedvid.service.sessions import Sessions
    from pagedvid.service.video_maker import VideoMaker

_AHEAD_SECONDS, _LED_AHEAD_SECONDS = 10.0, 1.0
"""How far sessions run ahead of their viewers unless settings say otherwise; the second, if they can be led."""

BuildWorker: TypeAlias = "Callable[[Callable[[Event], None]], VideoMaker]"
"""Makes what tells its events to the given function, and does not start it."""


def served_model(spec: RunSpec) -> ServedModel:
    """What clients may know of the model. Raises ConfigError for one that makes no frames."""
    frames, config, scale = _frames(spec), spec.config, _scale(spec)
    return ServedModel(
        config.model.name,
        config.generate.frames_per_second or frames.frames_per_second,
        width=_even(frames.width * scale),
        height=_even(frames.height * scale),
        frames_per_latent=frames.frames_per_latent,
        default_num_frames=min(config.generate.num_frames, config.serve.max_frames),
        takes_frames=spec.model.takes_frames,
        actions=spec.model.actions,
        example_prompt=spec.model.example_prompt,
    )


def build_served(spec: RunSpec) -> Engine:
    """An engine with its model, for a worker. Raises what loading it raises."""
    import torch

    from pagedvid.models.build import build_engine

    if spec.config.generate.threads != "auto":
        torch.set_num_threads(int(spec.config.generate.threads))  # of the thread that calls it, the worker's
    return build_engine(spec)


def checkpoint_files(spec: RunSpec, engine: Engine) -> OriginFiles:
    """Checkpoints that only the same model with the same weights goes on from."""
    from pagedvid.models.origin import origin_of
    from pagedvid.service.checkpoint_files import OriginFiles

    return OriginFiles(origin_of(spec, engine.model))


def one_worker(spec: RunSpec) -> BuildWorker:
    """Makes a worker of this process, which loads the model when it is started."""
    from pagedvid.service.worker import Worker

    return lambda on_event: Worker(partial(build_served, spec), on_event, checkpoints=partial(checkpoint_files, spec))


def make_sessions(spec: RunSpec, folder: Path, build_worker: BuildWorker) -> Sessions:
    """The sessions under a folder."""
    from pagedvid.service.sessions import Sessions

    frames = _frames(spec)
    video = VideoFormat(
        spec.config.generate.frames_per_second or frames.frames_per_second,
        spec.model.geometry.frames_per_chunk,
        _scale(spec),
    )
    settings = json.dumps(frame_settings(spec.config), sort_keys=True)
    return Sessions(folder, build_worker, video, session_limits(spec), settings=settings)


@contextmanager
def logs_as_json() -> Iterator[None]:
    """Log records of all libraries, and Python's warnings, go to stderr as lines of JSON."""
    from pagedvid.service.http.logs import JsonLines

    handler, root = logging.StreamHandler(sys.stderr), logging.getLogger()
    handler.setFormatter(JsonLines())
    level_before = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.removeHandler(handler)
        root.setLevel(level_before)


def session_limits(spec: RunSpec) -> SessionLimits:
    """How many sessions there may be, and how far they run ahead."""
    serve = spec.config.serve
    usual = _LED_AHEAD_SECONDS if spec.model.actions else _AHEAD_SECONDS
    return SessionLimits(
        max_queued=serve.max_queued,
        max_live=serve.max_live,
        max_ahead_seconds=usual if serve.max_ahead_seconds == "auto" else float(serve.max_ahead_seconds),
        grace_seconds=serve.grace_seconds,
        checkpoint_chunks=serve.checkpoint_chunks,
    )


def _frames(spec: RunSpec) -> FrameFormat:
    """How the model's frames look. Raises ConfigError for a model that gives out latents."""
    if spec.model.frames is None:
        raise ConfigError(
            f"{spec.config.model.name} gives latents, which nobody can watch; set model.vae if it has one that can be "
            "named, or serve another model"
        )
    return spec.model.frames


def _scale(spec: RunSpec) -> int:
    return spec.config.generate.scale or spec.model.pixel_scale


def _even(pixels: int) -> int:
    """As mp4.enlarge pads a side."""
    return pixels + pixels % 2
