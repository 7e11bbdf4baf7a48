"""The engines of a run as its progress and its summary see them: built, timed and looked at on the worker's thread."""

from __future__ import annotations

from collections.abc import Callable

from pagedvid.cache.stats import CacheStats
from pagedvid.cli.threads import ThreadChoice
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import EngineOutput


class EngineWatch:
    """Builds engines and takes their steps for a `Worker`. What it has seen may be read from any thread."""

    def __init__(self, build_engine: Callable[[], Engine], threads: ThreadChoice | None = None) -> None:
        """`threads`: None: the number of threads stays as it is."""
        self.frames_per_second = 0.0
        """Of the model."""
        self.frames_per_chunk = 1
        self.pool: CacheStats | None = None
        """The cache after the latest step; None: no engine was built."""
        self.fullest: CacheStats | None = None
        """The cache when it held the most bytes; None: nothing was committed."""
        self._build_engine, self._threads = build_engine, threads

    @property
    def num_threads(self) -> int | None:
        """The threads that were chosen; None: there was no choice."""
        return self._threads.num_threads if self._threads else None

    def build(self) -> Engine:
        """A new engine. Raises what building it raises."""
        engine = self._build_engine()
        self.frames_per_second = engine.model.frames_per_second
        self.frames_per_chunk = engine.model.geometry.frames_per_chunk
        self.pool = engine.cache.stats()
        return engine

    def take_step(self, engine: Engine) -> list[EngineOutput]:
        """A step of the engine; the first ones choose the number of threads. Raises what the step raises."""
        outputs = self._threads.run(engine.step) if self._threads else engine.step()
        self.pool = stats = engine.cache.stats()
        if stats.num_chunks and (self.fullest is None or stats.stored_bytes > self.fullest.stored_bytes):
            self.fullest = stats
        return outputs
