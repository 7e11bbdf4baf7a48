"""Videos that nothing may change: made once in a quiet service, and then again and again in the one that is shaken."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from pagedvid.errors import PagedvidError
from pagedvid.service.errors import NotFound
from pagedvid.service.records import COMPLETED, FAILED, NewSession, SessionRecord
from pagedvid.service.sessions import Sessions
from tests.engine.toy_model import FRAMES_PER_CHUNK
from tests.service.soak.faults import FIRST_SAFE_PROMPT
from tests.service.soak.toy_service import ToyService

LENGTHS_CHUNKS = (1, 3, 4, 7, 10)
LONGEST_WAIT_SECONDS = 600.0
"""Nobody watches these videos: under `deadline`, viewers who are never content leave them one step in some 256."""
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Entry:
    """A request and the file that it gives."""

    new: NewSession
    content: bytes


def requests() -> list[NewSession]:
    """One of each length."""
    return [
        NewSession(str(FIRST_SAFE_PROMPT + number), chunks * FRAMES_PER_CHUNK, seed=number)
        for number, chunks in enumerate(LENGTHS_CHUNKS)
    ]


def quiet_run(folder: Path) -> list[Entry]:
    """Makes every video alone."""
    service = ToyService(folder)
    service.start()
    entries = []
    for new in requests():
        record = wait_until_done(service, service.sessions.create(new).id)
        assert record.state == COMPLETED, record
        entries.append(Entry(new, content_of(service.sessions, record.id)))
    service.close()
    return entries


def wait_until_done(service: ToyService, id: str) -> SessionRecord:
    """The record of a session that has ended, over restarts. Raises TimeoutError if that takes too long."""
    deadline = time.monotonic() + LONGEST_WAIT_SECONDS
    latest: object = None
    while time.monotonic() < deadline:
        try:
            latest = record = service.sessions.get(id)
            if record.state in (COMPLETED, FAILED):
                return record
        except NotFound:
            raise
        except PagedvidError as error:  # between two starts
            latest = error
        time.sleep(POLL_SECONDS)
    raise TimeoutError(f"{id} has not ended after {LONGEST_WAIT_SECONDS:g} s: {latest}")


def content_of(sessions: Sessions, id: str) -> bytes:
    """The recorded file."""
    recording = sessions.recording(id)
    return recording.path.read_bytes()[: recording.end]


def delete(service: ToyService, *ids: str) -> None:
    """Deletes sessions, over restarts. Raises TimeoutError if that takes too long.

    In turns: one whose forks have not begun is kept until they have, and they may wait for the pages of another one.
    """
    deadline, left = time.monotonic() + LONGEST_WAIT_SECONDS, list(ids)
    while left := [id for id in left if not _deleted(service, id)]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{', '.join(left)} could not be deleted in {LONGEST_WAIT_SECONDS:g} s")
        time.sleep(POLL_SECONDS)


def _deleted(service: ToyService, id: str) -> bool:
    try:
        service.sessions.delete(id)
    except NotFound:
        return True
    except PagedvidError:
        return False
    return True
