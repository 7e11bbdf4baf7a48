"""The videos of a worker: what is known of each, and what is told of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from pagedvid.engine.failures import described, presentable
from pagedvid.engine.requests import ChunkOutput, EngineOutput, PromptRefused, VideoStatus
from pagedvid.engine.states import WAITING
from pagedvid.errors import StateError, WorkerError
from pagedvid.service.events import (
    GONE,
    ChunkEvent,
    Event,
    FailureEvent,
    RefusedEvent,
    StateEvent,
    VideoEvent,
)
from pagedvid.service.queue_times import QueueTimes
from pagedvid.service.recovery import NewPrompt, VideoRecord, makes_fork

logger = logging.getLogger(__name__)

MOST_BREAKS = 3
"""Engines that may break while they work on a video that gives no frames in between; then it ends."""

Read = Callable[[], tuple[VideoStatus, ...]]
"""Reads the states from the engine."""


class VideoBook:
    """Follows an engine's outputs and states, video by video, and tells what is new.

    A listener that raises ends the video of that event and no other.
    """

    def __init__(self, on_event: Callable[[Event], None], cancel: Callable[[str], None]) -> None:
        """`cancel`: drops a video from the engine, if it is there."""
        self.records: dict[str, VideoRecord] = {}
        """In order of arrival."""
        self.statuses: tuple[VideoStatus, ...] = ()
        """As last compared."""
        self.queue = QueueTimes()
        self._on_event, self._cancel = on_event, cancel
        self._is_stale = False

    # ------------------------------------------------------------------ what the engine says

    def take(self, output: EngineOutput) -> None:
        """Tells one output of a step; frames that were told before are left out."""
        record = self.records.get(output.request_id)
        if record is None:
            return  # it was ended earlier in the same step
        if isinstance(output, ChunkOutput):
            self._take_chunk(record, output)
        elif isinstance(output, PromptRefused):
            record.forget_prompt(NewPrompt(output.prompt, output.recache))
            self.tell(RefusedEvent(output.request_id, output.prompt, output.recache, *_named(output.error)))
        else:
            self.forget(output.request_id)
            self.tell(FailureEvent(output.request_id, *_named(output.error)))

    def is_expected(self, id: str) -> bool:
        """Whether it is a fork that its source has still to make, perhaps once more in another engine."""
        return id in self.records and self.records[id].base is None

    def compare(self, read: Read) -> None:
        """Reads the states, tells those that are new and forgets the videos that are gone."""
        self._is_stale = True
        while self._is_stale:  # again after a listener has raised, which ends a video
            self._is_stale = False
            before = {status.id: status.state for status in self.statuses}
            self.statuses = read()
            self.queue.follow(self.statuses)
            now = {status.id: status.state for status in self.statuses}
            for id in [id for id in before if id not in now and not self.is_expected(id)]:
                self.forget(id)
                self.tell(StateEvent(id, GONE))
            for id, state in now.items():
                if before.get(id) != state:
                    self.tell(StateEvent(id, state))

    def begin_forks(
        self, read: Callable[[], tuple[VideoStatus, ...]], outputs: Sequence[EngineOutput] = ()
    ) -> list[str]:
        """Finds the forks that have begun, before the outputs of the same step are taken; returns their ids.

        Their first frames are those of their source, which are not given out again.
        """
        expected = [id for id, record in self.records.items() if record.base is None]
        if not expected:
            return []
        statuses = {status.id: status for status in read() if status.state != WAITING}
        for id in expected:
            chunks = [it for it in outputs if isinstance(it, ChunkOutput) and it.request_id == id]
            if id in statuses:
                num_new = sum(len(chunk.frames) for chunk in chunks)
                self.records[id].begin(statuses[id].num_output_frames - num_new)
            elif chunks:  # it began and ended in this step
                source = self._source_of(id)
                self.records[id].begin(source.frames_made if source else 0)
        return [id for id in expected if id in statuses]

    # ------------------------------------------------------------------ what is told

    def tell(self, event: Event) -> None:
        """Gives an event to the listener; when it raises, the event's video ends."""
        try:
            self._on_event(event)
        except Exception as error:
            logger.warning("a listener failed on %s: %s", type(event).__name__, described(error), exc_info=True)
            if isinstance(event, VideoEvent) and event.id in self.records:
                self.end(event.id, error)

    def end(self, id: str, error: Exception) -> None:
        """Ends a video with a failure."""
        self.forget(id)
        self._cancel(id)
        self._is_stale = True
        self.tell(FailureEvent(id, *_named(error)))

    def forget(self, id: str) -> None:
        """Nothing will be made again of a video that has ended."""
        self.records.pop(id, None)
        self.forget_fork(id)

    def forget_fork(self, id: str) -> None:
        """A fork has a base of its own, or has ended: its source need not make it again."""
        for record in self.records.values():
            record.changes = [change for change in record.changes if not makes_fork(change, id)]
            record.unasked = [change for change in record.unasked if not makes_fork(change, id)]

    # ------------------------------------------------------------------ after an engine broke

    @property
    def has_suspects(self) -> bool:
        """Whether an engine broke while it worked on a video that has given no frames since. Each video is alone in its
        forwards then, so that no other one is blamed again."""
        return any(record.num_breaks for record in self.records.values())

    def blame(self, ids: Sequence[str]) -> None:
        """Counts the break for these videos, on which the engine was working, or for all where it worked on none."""
        for record in [self.records[id] for id in ids if id in self.records] or list(self.records.values()):
            record.num_breaks += 1

    def end_breakers(self, reason: str) -> None:
        """Ends the videos that may have broken too many engines."""
        for id, record in list(self.records.items()):
            if record.num_breaks >= MOST_BREAKS:
                error = WorkerError(f"{record.num_breaks} engines broke while they worked on this video: {reason}")
                self.end(id, error)

    def end_orphans(self) -> None:
        """Ends the forks whose source is no more."""
        for id, record in list(self.records.items()):
            if record.base is None and self._source_of(id) is None:
                self.end(id, StateError("the video that it goes on from ended before this one began"))

    # ------------------------------------------------------------------ inside

    def _take_chunk(self, record: VideoRecord, output: ChunkOutput) -> None:
        first_frame, num_frames = record.frames_made, len(output.frames)
        num_old = record.take(num_frames)
        if num_old < num_frames:
            event = ChunkEvent(
                output.request_id,
                output.chunk_index,
                first_frame + num_old,
                output.frames[num_old:],
                output.is_last,
                output.stored_bytes,
                output.bf16_bytes,
            )
            self.tell(event)

    def _source_of(self, id: str) -> VideoRecord | None:
        records = self.records.values()
        return next((it for it in records if any(makes_fork(change, id) for change in it.changes)), None)


def _named(error: Exception) -> tuple[str, str]:
    """Kind and message, fit to be shown."""
    error = presentable(error)
    return type(error).__name__, str(error)
