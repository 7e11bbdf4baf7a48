"""How a fork gets its source's frames: a copy of those before the boundary at which it began.

Called on the recorder's thread with the events that waited, which are recorded after the copied frames.
"""

from __future__ import annotations

from collections.abc import Sequence

from pagedvid.engine.failures import presentable
from pagedvid.errors import IntegrityError
from pagedvid.service.errors import storage_errors
from pagedvid.service.events import ChunkEvent, Event
from pagedvid.service.parts import Parts
from pagedvid.service.records import SessionError, SessionRecord
from pagedvid.service.session_events import SessionState
from pagedvid.service.stored_courses import StoredCheckpoint


def join(
    parts: Parts, fork: SessionRecord, source_id: str, checkpoint: StoredCheckpoint, events: Sequence[Event]
) -> None:
    """Gives a fork the chunks of its source and its own checkpoint, and records what it has made itself. It fails if
    that cannot be written."""
    firsts = [event.first_frame for event in events if isinstance(event, ChunkEvent)]
    begin = min([*firsts, checkpoint.frames_done])
    try:
        parts.recorder.let_through(source_id, lambda it: isinstance(it, ChunkEvent) and it.first_frame < begin)
        num_chunks = _copy_video(parts, fork.id, source_id, begin)
        with parts.store.transaction():
            parts.store.courses.set_checkpoint(fork.id, checkpoint)
            if num_chunks > 0:
                parts.store.chunks.copy(source_id, fork.id, num_chunks)
                parts.store.begin(fork.id)
            parts.watch(parts.store.find(fork.id) or fork)  # `get` knows none that is only being accepted
            parts.recorder.record_all(events)
    except Exception as error:
        fail(parts, fork.id, error, events)
    else:
        parts.announcer.tell(SessionState(fork.id, (parts.store.find(fork.id) or fork).state))


def fail(parts: Parts, id: str, error: Exception, events: Sequence[Event]) -> None:
    """Ends a fork that cannot go on; its `events` are not recorded."""
    error = presentable(error)
    parts.fail(id, SessionError(type(error).__name__, str(error)))


def _copy_video(parts: Parts, id: str, source_id: str, num_frames: int) -> int:
    """Copies the source's chunks up to a number of output frames; returns how many chunks these are."""
    if num_frames == 0:
        return 0
    for chunk in parts.store.chunks.of(source_id):
        if chunk.first_frame + chunk.num_frames == num_frames:
            with storage_errors():
                parts.files.copy_video(source_id, id, chunk.end)
            return chunk.index + 1
    raise IntegrityError(f"no chunk of session {source_id} ends with its frame {num_frames - 1}; fork it again")
