"""Videos as a step of a pipeline of Ray Data: a class for `Dataset.map_batches`.

videos = prompts.map_batches(VideoGenerator, fn_constructor_kwargs={"settings": {"model.device": "cuda"}},
                             batch_size=16, num_gpus=1, concurrency=4)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pagedvid.config.file import Setting, resolve
from pagedvid.config.sections import MAX_SEED, Config
from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError, WorkerError
from pagedvid.models.build import build_engine
from pagedvid.models.build import resolve as resolve_run
from pagedvid.service.event_queue import EventQueue
from pagedvid.service.events import ChunkEvent, Event, FailureEvent
from pagedvid.service.stats import DEAD
from pagedvid.service.worker import Worker

MAX_UNREAD = 16
LOOK_SECONDS = 0.2
"""How often the worker is looked after while no event comes."""

Columns = dict[str, NDArray[Any]]


class VideoGenerator:
    """Holds one worker; a call makes the videos of one batch at the same time, as far as its pool admits them."""

    def __init__(self, settings: Mapping[str, object] | None = None) -> None:
        """`settings`: by "section.key", as for `--set`; the others have their defaults. Loads the model.

        Raises ConfigError, and what building the engine raises.
        """
        self._config = _config(settings or {})
        if self._config.generate.threads != "auto":
            torch.set_num_threads(int(self._config.generate.threads))
        run = resolve_run(self._config)
        self._events = EventQueue[Event](MAX_UNREAD)
        self._worker = Worker(lambda: build_engine(run), self._hear)
        self._worker.start()
        self._num_requests = 0

    def __call__(self, batch: Columns) -> Columns:
        """Adds two columns: `frames`, an array [frames, height, width, 3] uint8 (or latents, float32 [frames, C, rows,
        columns]) for each row, and `error`, empty for a video that was made; other rows have no frames.

        `batch`: a column `prompt`, and if wanted `seed` and `num_frames`; a row without a seed has `generate.seed`.
        Raises ConfigError for another batch, and WorkerError when the engine is gone for good.
        """
        requests = self._requests(batch)
        parts: dict[str, list[NDArray[Any]]] = {request.id: [] for request in requests}
        errors = dict.fromkeys(parts, "")
        pending = set(parts)
        answers = {request.id: self._worker.submit(request) for request in requests}
        while pending:
            event = self._events.take(LOOK_SECONDS)
            if isinstance(event, ChunkEvent):
                parts[event.id].append(event.frames)
                if event.is_last:
                    pending.discard(event.id)
            elif isinstance(event, FailureEvent):
                errors[event.id], parts[event.id] = f"{event.kind}: {event.message}", []
                pending.discard(event.id)
            for id in [id for id in pending if id in answers and answers[id].done()]:
                if (error := answers.pop(id).exception()) is not None:
                    errors[id] = f"{type(error).__name__}: {error}"
                    pending.discard(id)
            if event is None and (stats := self._worker.stats()).state == DEAD:
                raise WorkerError(stats.reason)
        return {
            **batch,
            "frames": _ragged(list(parts.values())),
            "error": np.array(list(errors.values()), dtype=object),
        }

    def _hear(self, event: Event) -> None:
        if isinstance(event, ChunkEvent | FailureEvent):
            self._events.put(event)

    def _requests(self, batch: Columns) -> list[VideoRequest]:
        if "prompt" not in batch:
            raise ConfigError(f'a batch with the columns {", ".join(batch)} has no prompts; name a column "prompt"')
        generate, num_rows = self._config.generate, len(batch["prompt"])
        seeds = batch.get("seed", np.full(num_rows, generate.seed))
        lengths = batch.get("num_frames", np.full(num_rows, generate.num_frames))
        first, self._num_requests = self._num_requests, self._num_requests + num_rows
        return [
            VideoRequest(str(first + row), str(prompt), int(lengths[row]), int(seeds[row]) % (MAX_SEED + 1))
            for row, prompt in enumerate(batch["prompt"])
        ]


def _config(settings: Mapping[str, object]) -> Config:
    written = []
    for name, value in settings.items():
        section, _, key = name.partition(".")
        written.append(Setting(section, key, value, "settings"))
    return resolve(written).config


def _ragged(videos: list[list[NDArray[Any]]]) -> NDArray[Any]:
    """One array per row, of any length."""
    shapes = [part.shape[1:] for parts in videos for part in parts]
    empty = np.zeros((0, *(shapes[0] if shapes else (0, 0, 3))), np.uint8)
    column = np.empty(len(videos), dtype=object)
    for row, parts in enumerate(videos):
        column[row] = np.concatenate(parts) if parts else empty
    return column
