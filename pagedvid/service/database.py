"""The SQLite file behind the store: its tables, its version, its transactions, and its errors by name."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pagedvid.errors import PromptError
from pagedvid.service.errors import StorageError

VERSION = 3
"""Of the tables; a file of another version is refused."""
_BUSY_SECONDS = 10.0
_TABLES = """
CREATE TABLE sessions (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    is_accepted INTEGER NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    pause_reason TEXT,
    prompt TEXT NOT NULL,
    later_prompts TEXT NOT NULL,
    num_frames INTEGER NOT NULL,
    seed INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    inputs TEXT NOT NULL,
    live_frames_per_second REAL,
    source_id TEXT,
    shares_history INTEGER NOT NULL,
    created_at REAL NOT NULL,
    completed_at REAL,
    error_code TEXT,
    error_message TEXT,
    chunks_done INTEGER NOT NULL DEFAULT 0,
    frames_done INTEGER NOT NULL DEFAULT 0,
    width INTEGER,
    height INTEGER,
    init_bytes INTEGER NOT NULL DEFAULT 0,
    stored_bytes INTEGER NOT NULL DEFAULT 0,
    bf16_bytes INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX sessions_by_state ON sessions (state);
CREATE INDEX sessions_by_source ON sessions (source_id);
CREATE TABLE chunks (
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    chunk_index INTEGER NOT NULL,
    first_frame INTEGER NOT NULL,
    num_frames INTEGER NOT NULL,
    start_byte INTEGER NOT NULL,
    end_byte INTEGER NOT NULL,
    PRIMARY KEY (session_id, chunk_index)
) WITHOUT ROWID;
CREATE TABLE prompts (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    session_id TEXT NOT NULL REFERENCES sessions (id) ON DELETE CASCADE,
    at_frame INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    recache INTEGER NOT NULL
);
CREATE INDEX prompts_by_session ON prompts (session_id);
CREATE TABLE checkpoints (
    session_id TEXT PRIMARY KEY REFERENCES sessions (id) ON DELETE CASCADE,
    name TEXT NOT NULL,
    frames_done INTEGER NOT NULL,
    prompt TEXT NOT NULL,
    num_frames INTEGER NOT NULL
);
CREATE TABLE settings (value TEXT NOT NULL);
"""


class Database:
    """One connection behind a lock, for all threads: statements take microseconds, commits one flush of the disk.

    What is committed survives a crash of the process and of the machine. Every method raises StorageError, and
    PromptError for text that SQLite cannot hold.
    """

    def __init__(self, path: Path) -> None:
        """Opens or makes the file. A file of another version is refused."""
        self._path = path
        self._lock = threading.RLock()
        with self._named_errors():
            self._connection = sqlite3.connect(
                path, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False
            )
            try:
                self._connection.row_factory = sqlite3.Row
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def close(self) -> None:
        """Nothing can be read or written any more."""
        with self._lock:
            self._connection.close()

    @contextmanager
    def change(self) -> Iterator[sqlite3.Connection]:
        """One transaction, or part of the one around it: on disk when the block has ended, or nothing has changed."""
        with self._lock, self._named_errors():
            if self._is_changing():
                yield self._connection
                return
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._commit()
            except BaseException:
                if self._is_changing():  # SQLite ends it itself when the disk is full
                    self._connection.execute("ROLLBACK")
                raise

    def read(self, query: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[sqlite3.Row]:
        """The rows of a query."""
        with self._lock, self._named_errors():
            return self._connection.execute(query, values).fetchall()

    def _is_changing(self) -> bool:
        return self._connection.in_transaction

    def _commit(self) -> None:
        self._connection.execute("COMMIT")

    def _prepare(self) -> None:
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version == 0:
            self._connection.executescript(f"BEGIN; {_TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
        elif version != VERSION:
            raise StorageError(
                f"{self._path} has tables of version {version}, this pagedvid uses version {VERSION}; use another "
                "data folder, or the pagedvid that made this one"
            )

    @contextmanager
    def _named_errors(self) -> Iterator[None]:
        try:
            yield
        except UnicodeEncodeError:
            raise PromptError("the text has half of a surrogate pair, which is no character; remove it") from None
        except sqlite3.Error as error:
            raise StorageError(f"{self._path}: {error}; {_advice(str(error))}") from error


def _advice(message: str) -> str:
    if "full" in message:
        return "free some space; what was accepted before is not lost"
    if "locked" in message:
        return "another process works on it; stop that one, or use another data folder"
    if "malformed" in message or "not a database" in message:
        return "the file is damaged; restore it from a backup, or use another data folder"
    return "check the disk and the rights of the data folder"
