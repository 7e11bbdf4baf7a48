"""Resumes a session in the worker from its checkpoint."""

from __future__ import annotations

from concurrent.futures import Future

from pagedvid.service.parts import Parts
from pagedvid.service.records import SessionRecord
from pagedvid.service.recovery import Change, Extension, NewPrompt
from pagedvid.service.stored_courses import StoredCheckpoint


def take_up(parts: Parts, session: SessionRecord, checkpoint: StoredCheckpoint) -> Future[str]:
    """Asks the worker to go on from a checkpoint, with the changes that came after it or were waiting for a chunk.

    Frames that are recorded already are made again, but not reported again.
    """
    changes: list[Change] = []
    if session.prompt != checkpoint.prompt and not session.later_prompts:  # those are in the file
        given = parts.store.courses.prompts(session.id)[-1]
        changes.append(NewPrompt(given.prompt, given.recache))
    if session.num_frames > checkpoint.num_frames:
        changes.append(Extension(session.num_frames))
    path = parts.files.checkpoint(session.id, checkpoint.name)
    return parts.worker.restore(path, changes, frames_given=session.frames_done, id=session.id)
