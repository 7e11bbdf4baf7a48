"""What is known of sessions, on disk: their requests and states, and through its parts their chunks and courses.

Every method is one transaction: it is on disk when the method returns, or nothing has changed.
"""

from __future__ import annotations

import json
import sqlite3
import time
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from pagedvid.engine.requests import LaterPrompt
from pagedvid.service.database import Database
from pagedvid.service.errors import NotFound, StorageError
from pagedvid.service.records import (
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    QUEUED,
    UNFINISHED,
    NewSession,
    SessionError,
    SessionPage,
    SessionRecord,
    VideoFormat,
)
from pagedvid.service.stored_chunks import StoredChunks
from pagedvid.service.stored_courses import GivenPrompt, StoredCourses
from pagedvid.shown import shown

_UNFINISHED = ", ".join(f"'{state}'" for state in UNFINISHED)


class Store:
    """The sessions of one data folder. Methods raise StorageError; those that take an id raise NotFound for an unknown
    one."""

    def __init__(self, path: Path, video: VideoFormat) -> None:
        self._video = video
        self._database = Database(path)
        self.chunks = StoredChunks(self._database)
        self.courses = StoredCourses(self._database)
        self._failures: dict[str, SessionError] = {}
        """Failures that could not be written yet."""
        self.transaction = self._database.change
        """A block whose changes are made all together or not at all."""

    def close(self) -> None:
        """Closes the file; nothing can be read or written any more."""
        self._database.close()

    # ------------------------------------------------------------------ the life of a session

    def insert(self, id: str, new: NewSession, source_id: str | None = None) -> None:
        """A session that is not accepted yet: it is removed at the next start unless `accept` follows."""
        row: dict[str, Any] = {
            "id": id,
            "is_accepted": 0,
            "kind": new.kind,
            "state": QUEUED,
            "prompt": new.prompt,
            "later_prompts": json.dumps([asdict(later) for later in new.later_prompts]),
            "num_frames": new.num_frames,
            "seed": new.seed,
            "priority": new.priority,
            "inputs": json.dumps(dict(new.inputs)),
            "live_frames_per_second": new.live_frames_per_second,
            "source_id": source_id,
            "shares_history": source_id is not None,
            "created_at": time.time(),
        }
        with self._database.change() as database:
            names, marks = ", ".join(row), ", ".join(f":{name}" for name in row)
            database.execute(f"INSERT INTO sessions ({names}) VALUES ({marks})", row)
            self.courses.give_prompt(id, GivenPrompt(0, new.prompt, recache=False))

    def accept(self, *ids: str) -> None:
        """Accepts these sessions, all or none: from now on they will be finished, also after a crash."""
        with self._database.change() as database:
            database.executemany("UPDATE sessions SET is_accepted = 1 WHERE id = ?", [(id,) for id in ids])

    def separate(self, id: str) -> None:
        """Notes that a fork shares no history, because its source had none."""
        with self._database.change() as database:
            database.execute("UPDATE sessions SET shares_history = 0 WHERE id = ?", (id,))

    def delete(self, id: str) -> None:
        """Removes all that is known of a session, if it is known."""
        with self._database.change() as database:
            database.execute("DELETE FROM sessions WHERE id = ?", (id,))

    def set_state(self, id: str, state: str, pause_reason: str | None = None) -> None:
        """Sets another state, which is not `FAILED`; see `fail`."""
        completed_at = time.time() if state == COMPLETED else None
        with self._database.change() as database:
            database.execute(
                "UPDATE sessions SET state = ?, pause_reason = ?, completed_at = ? WHERE id = ?",
                (state, pause_reason, completed_at, id),
            )

    def fail(self, id: str, error: SessionError) -> None:
        """A session ends without its remaining frames. Never raises: a disk that is full may be the reason.

        Until `save_failures` can write it, it is remembered; after a restart the session goes on then.
        """
        self._failures[id] = error
        with suppress(StorageError):
            self.save_failures()

    def save_failures(self) -> None:
        """Writes the failures that could not be written yet."""
        for id, error in list(self._failures.items()):
            with self._database.change() as database:
                database.execute(
                    "UPDATE sessions SET state = ?, pause_reason = NULL, completed_at = ?, error_code = ?, "
                    "error_message = ? WHERE id = ?",
                    (FAILED, time.time(), error.code, error.message.encode(errors="replace").decode(), id),
                )
            self._failures.pop(id, None)

    def set_length(self, id: str, num_frames: int, state: str, completed_at: float | None) -> None:
        """Another number of frames, with which a completed session has something to do again."""
        with self._database.change() as database:
            database.execute(
                "UPDATE sessions SET num_frames = ?, state = ?, completed_at = ? WHERE id = ?",
                (num_frames, state, completed_at, id),
            )

    def begin(self, id: str) -> bool:
        """A queued session is in progress now; returns whether it was queued."""
        with self._database.change() as database:
            query = f"UPDATE sessions SET state = '{IN_PROGRESS}' WHERE id = ? AND state = '{QUEUED}'"
            return database.execute(query, (id,)).rowcount > 0

    # ------------------------------------------------------------------ reading

    def get(self, id: str) -> SessionRecord:
        """An accepted session. Raises NotFound for any other."""
        row = self._one(id)
        if not row["is_accepted"]:
            raise NotFound(f"there is no session {shown(id)}; it may have been deleted")
        return self._record(row)

    def find(self, id: str) -> SessionRecord | None:
        """A session, accepted or not; None: it was deleted."""
        rows = self._database.read("SELECT * FROM sessions WHERE id = ?", (id,))
        return self._record(rows[0]) if rows else None

    def page(self, limit: int, after: str | None, newest_first: bool, kind: str | None) -> SessionPage:
        """Accepted sessions by time of creation; see `Sessions.list`."""
        compare, order = ("<", "DESC") if newest_first else (">", "ASC")
        conditions, values = ["is_accepted"], dict[str, Any](limit=limit + 1)
        if after is not None:
            conditions.append(f"number {compare} :after")
            values["after"] = self._one(after)["number"]
        if kind is not None:
            conditions.append("kind = :kind")
            values["kind"] = kind
        where = " AND ".join(conditions)
        rows = self._database.read(f"SELECT * FROM sessions WHERE {where} ORDER BY number {order} LIMIT :limit", values)
        return SessionPage(tuple(self._record(row) for row in rows[:limit]), has_more=len(rows) > limit)

    def unfinished(self) -> list[SessionRecord]:
        """Accepted sessions that have frames to make, in order of creation."""
        rows = self._database.read(
            f"SELECT * FROM sessions WHERE is_accepted AND state IN ({_UNFINISHED}) ORDER BY number"
        )
        return [self._record(row) for row in rows]

    def num_queued(self) -> int:
        """How many sessions have no frames yet."""
        ((number,),) = self._database.read(f"SELECT count(*) FROM sessions WHERE state = '{QUEUED}'")
        return int(number)

    def num_live(self) -> int:
        """How many live sessions have not ended."""
        ((number,),) = self._database.read(
            f"SELECT count(*) FROM sessions WHERE live_frames_per_second IS NOT NULL AND state IN ({_UNFINISHED})"
        )
        return int(number)

    def least_left(self) -> tuple[int, int]:
        """(Sessions in progress, fewest chunks that one of them has left); (0, 0) for none."""
        in_progress = [record for record in self.unfinished() if record.state == IN_PROGRESS]
        left = [record.num_chunks - record.chunks_done for record in in_progress]
        return len(left), max(0, min(left, default=0))

    def all_ids(self) -> list[str]:
        """The ids of all sessions."""
        return [row["id"] for row in self._database.read("SELECT id FROM sessions ORDER BY number")]

    def remove_unaccepted(self) -> int:
        """Removes sessions that a crash kept from being accepted; returns their number."""
        with self._database.change() as database:
            return database.execute("DELETE FROM sessions WHERE NOT is_accepted").rowcount

    def exchange_settings(self, settings: str) -> str | None:
        """Remembers the settings of this start; returns those of the last one, None at the first."""
        with self._database.change() as database:
            rows = database.execute("SELECT value FROM settings").fetchall()
            database.execute("DELETE FROM settings")
            database.execute("INSERT INTO settings VALUES (?)", (settings,))
        return rows[0]["value"] if rows else None

    # ------------------------------------------------------------------ inside

    def _one(self, id: str) -> sqlite3.Row:
        rows = self._database.read("SELECT * FROM sessions WHERE id = ?", (id,))
        if not rows:
            raise NotFound(f"there is no session {shown(id)}; it may have been deleted")
        return rows[0]

    def _record(self, row: sqlite3.Row) -> SessionRecord:
        values = {name: row[name] for name in row.keys() if name in SessionRecord.__dataclass_fields__}  # noqa: SIM118
        code = row["error_code"]
        values |= {
            "inputs": json.loads(row["inputs"]),
            "later_prompts": tuple(LaterPrompt(**later) for later in json.loads(row["later_prompts"])),
            "error": None if code is None else SessionError(code, row["error_message"]),
            "shares_history": bool(row["shares_history"]),
            "num_chunks": -(-row["num_frames"] // self._video.frames_per_chunk),
            "frames_per_second": self._video.frames_per_second,
        }
        record = SessionRecord(**values)
        failure = self._failures.get(record.id)
        return record if failure is None else replace(record, state=FAILED, pause_reason=None, error=failure)
