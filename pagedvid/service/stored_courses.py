"""What a session needs to go on as it would have: the prompts that it was given, and its newest checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

from pagedvid.service.database import Database


@dataclass(frozen=True)
class GivenPrompt:
    """The prompt of a session from its beginning or from a chunk boundary on."""

    at_frame: int
    """Output frames that were recorded when it was given; it takes effect after them."""
    prompt: str
    recache: bool


@dataclass(frozen=True)
class StoredCheckpoint:
    """A file from which a session can go on, and where it goes on."""

    name: str
    """Of the file in the session's folder."""
    frames_done: int
    """Output frames that were made before it."""
    prompt: str
    """In effect there; one that waits for a chunk boundary is not in the file."""
    num_frames: int
    """The model's frames, as planned there."""


class StoredCourses:
    """Each method is one transaction, or part of the caller's. They raise StorageError."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def set_checkpoint(self, id: str, checkpoint: StoredCheckpoint) -> None:
        """Puts a checkpoint in the place of the one before."""
        with self._database.change() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?, ?)",
                (id, checkpoint.name, checkpoint.frames_done, checkpoint.prompt, checkpoint.num_frames),
            )

    def drop_checkpoint(self, id: str) -> None:
        """Forgets the checkpoint of a session, because it cannot be used."""
        with self._database.change() as connection:
            connection.execute("DELETE FROM checkpoints WHERE session_id = ?", (id,))

    def checkpoint(self, id: str) -> StoredCheckpoint | None:
        """The newest checkpoint of a session; None: there is none."""
        for row in self._database.read("SELECT * FROM checkpoints WHERE session_id = ?", (id,)):
            return StoredCheckpoint(row["name"], row["frames_done"], row["prompt"], row["num_frames"])
        return None

    def give_prompt(self, id: str, given: GivenPrompt) -> None:
        """Adds a prompt, which is the session's present one from now on."""
        with self._database.change() as connection:
            connection.execute("UPDATE sessions SET prompt = ? WHERE id = ?", (given.prompt, id))
            connection.execute(
                "INSERT INTO prompts (session_id, at_frame, prompt, recache) VALUES (?, ?, ?, ?)",
                (id, given.at_frame, given.prompt, given.recache),
            )

    def take_back_prompt(self, id: str, prompt: str, recache: bool) -> None:
        """Removes a prompt that was refused; the newest of the others is the present one again. Of several equal ones
        it was one that still waited, so the newest goes."""
        with self._database.change() as connection:
            connection.execute(
                "DELETE FROM prompts WHERE number = "
                "(SELECT max(number) FROM prompts WHERE session_id = ? AND prompt = ? AND recache = ?)",
                (id, prompt, recache),
            )
            connection.execute(
                "UPDATE sessions SET prompt = "
                "(SELECT prompt FROM prompts WHERE session_id = ? ORDER BY number DESC LIMIT 1) WHERE id = ?",
                (id, id),
            )

    def prompts(self, id: str) -> tuple[GivenPrompt, ...]:
        """Every prompt that the session was given, its first one included."""
        rows = self._database.read("SELECT * FROM prompts WHERE session_id = ? ORDER BY number", (id,))
        return tuple(GivenPrompt(row["at_frame"], row["prompt"], bool(row["recache"])) for row in rows)
