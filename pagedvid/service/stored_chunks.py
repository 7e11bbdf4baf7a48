"""The chunks in the sessions' files, as rows: bytes of a file after its last recorded chunk do not count."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

from pagedvid.service.database import Database
from pagedvid.service.records import IN_PROGRESS, QUEUED, RecordedChunk


@dataclass(frozen=True)
class NewChunk:
    """A chunk that was appended to a session's file."""

    place: RecordedChunk
    init_bytes: int
    width: int
    height: int
    stored_bytes: int
    bf16_bytes: int


class StoredChunks:
    """Each method is one transaction, or part of the caller's. They raise StorageError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, id: str, chunk: NewChunk) -> None:
        """Records a chunk whose bytes are on disk. The first one puts a queued session in progress."""
        place = chunk.place
        with self._database.change() as connection:
            connection.execute(
                "INSERT INTO chunks VALUES (?, ?, ?, ?, ?, ?)",
                (id, place.index, place.first_frame, place.num_frames, place.start, place.end),
            )
            connection.execute(
                "UPDATE sessions SET chunks_done = ?, frames_done = ?, init_bytes = ?, width = ?, height = ?, "
                "stored_bytes = max(stored_bytes, ?), bf16_bytes = max(bf16_bytes, ?), "
                f"state = CASE state WHEN '{QUEUED}' THEN '{IN_PROGRESS}' ELSE state END WHERE id = ?",
                (
                    place.index + 1, place.first_frame + place.num_frames, chunk.init_bytes, chunk.width, chunk.height,
                    chunk.stored_bytes, chunk.bf16_bytes, id,
                ),
            )  # fmt: skip

    def of(self, id: str, first: int = 0) -> tuple[RecordedChunk, ...]:
        """The chunks of a session from the index `first` on."""
        rows = self._database.read(
            "SELECT * FROM chunks WHERE session_id = ? AND chunk_index >= ? ORDER BY chunk_index", (id, first)
        )
        return tuple(
            RecordedChunk(row["chunk_index"], row["first_frame"], row["num_frames"], row["start_byte"], row["end_byte"])
            for row in rows
        )

    def num_from(self, id: str, first_frame: int) -> int:
        """How many chunks of a session begin at `first_frame`, an output frame, or later."""
        ((number,),) = self._database.read(
            "SELECT count(*) FROM chunks WHERE session_id = ? AND first_frame >= ?", (id, first_frame)
        )
        return int(number)

    def end(self, id: str) -> int:
        """How many bytes of a session's file are recorded."""
        ((end,),) = self._database.read("SELECT coalesce(max(end_byte), 0) FROM chunks WHERE session_id = ?", (id,))
        return int(end)

    def copy(self, source_id: str, id: str, num_chunks: int) -> None:
        """A session begins with the first chunks of another one."""
        with self._database.change() as connection:
            connection.execute("DELETE FROM chunks WHERE session_id = ?", (id,))
            connection.execute(
                "INSERT INTO chunks SELECT ?, chunk_index, first_frame, num_frames, start_byte, end_byte FROM chunks "
                "WHERE session_id = ? AND chunk_index < ?",
                (id, source_id, num_chunks),
            )
            connection.execute(
                "UPDATE sessions SET (init_bytes, width, height) = "
                "(SELECT init_bytes, width, height FROM sessions WHERE id = ?) WHERE id = ?",
                (source_id, id),
            )
            _count(connection, id)

    def cut(self, id: str, num_chunks: int) -> None:
        """Keeps the first `num_chunks` chunks of a session and forgets the others."""
        with self._database.change() as connection:
            connection.execute("DELETE FROM chunks WHERE session_id = ? AND chunk_index >= ?", (id, num_chunks))
            _count(connection, id)


def _count(connection: sqlite3.Connection, id: str) -> None:
    connection.execute(
        "UPDATE sessions SET (chunks_done, frames_done) = "
        "(SELECT count(*), coalesce(sum(num_frames), 0) FROM chunks WHERE session_id = ?) WHERE id = ?",
        (id, id),
    )
