"""From a session's checkpoint back into the worker."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from pagedvid.service.parts import Parts
from pagedvid.service.records import SessionRecord
from pagedvid.service.stored_courses import StoredCheckpoint


def take_up(parts: Parts, session: SessionRecord, checkpoint: StoredCheckpoint) -> list[Future[Any]]:
    """Asks the worker to go on from a checkpoint; the verbs' futures, in their order.

    What the session was told after the checkpoint, or what waited for a chunk boundary there, is told again. The worker
    carries out verbs that it gets together before its next step, so that this counts from the same boundary on.
    """
    futures: list[Future[Any]] = [parts.worker.restore(parts.files.checkpoint(session.id, checkpoint.name))]
    if session.prompt != checkpoint.prompt:
        given = parts.store.courses.prompts(session.id)[-1]
        futures.append(parts.worker.prompt(session.id, given.prompt, recache=given.recache))
    if session.num_frames > checkpoint.num_frames:
        futures.append(parts.worker.extend(session.id, session.num_frames))
    return futures
