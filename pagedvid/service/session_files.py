"""The files of the sessions: one folder each, and in it

input_reference           the picture or video that it goes on from, as it was given
video.mp4                 init segment and fragments (output/fragments.py); only what the store's rows say counts
checkpoint-N.safetensors  from which it goes on; the store says which one
whole-N.mp4               the first N chunks for downloads

Bytes are on disk when a method returns. Nothing here knows of rows: who calls writes the files first and the row then,
and removes the row first and the files then.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from pagedvid.service.records import RecordedChunk

_COPY_BYTES = 1 << 20


class SessionFiles:
    """The folder of all sessions. Methods raise OSError."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def video(self, id: str) -> Path:
        """The file with a session's recorded chunks."""
        return self._folder / id / "video.mp4"

    def reference(self, id: str) -> Path:
        """The file that a session goes on from. Its name is what messages call it."""
        return self._folder / id / "input_reference"

    def write_reference(self, id: str, content: bytes) -> None:
        """Writes the file that a session goes on from."""
        with self.reference(id).open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        _flush_folder(self._folder / id)

    def whole(self, id: str, num_chunks: int) -> Path:
        """The file that has a session's first `num_chunks` chunks as an ordinary mp4 file, if it was made."""
        return self._folder / id / f"whole-{num_chunks}.mp4"

    def checkpoint(self, id: str, name: str) -> Path:
        """The file of a session's checkpoint of this name."""
        return self._folder / id / name

    def new_checkpoint_name(self, id: str) -> str:
        """A name for a new checkpoint, which no other checkpoint of the session has."""
        numbers = [int(path.stem.partition("-")[2]) for path in (self._folder / id).glob("checkpoint-*.safetensors")]
        return f"checkpoint-{max(numbers, default=0) + 1}.safetensors"

    def make(self, id: str) -> None:
        """Makes a session's folder, unless it is there."""
        path = self._folder / id
        if not path.exists():
            path.mkdir()
            _flush_folder(self._folder)

    def append(self, id: str, start: int, content: bytes) -> None:
        """Writes after the first `start` bytes of the video, and drops whatever followed them."""
        path = self.video(id)
        is_new = not path.exists()
        with path.open("wb" if is_new else "r+b") as file:
            file.truncate(start)
            file.seek(start)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            _flush_folder(path.parent)

    def copy_video(self, source_id: str, id: str, num_bytes: int) -> None:
        """The first bytes of another session's video, in place of this one's."""
        with self.video(source_id).open("rb") as source, self.video(id).open("wb") as file:
            left = num_bytes
            while left and (block := source.read(min(left, _COPY_BYTES))):
                file.write(block)
                left -= len(block)
            file.flush()
            os.fsync(file.fileno())
        if left:
            raise OSError(f"{self.video(source_id)} ends {left} bytes before what is recorded in it")
        _flush_folder(self.video(id).parent)

    def read(self, id: str, init_bytes: int, chunk: RecordedChunk) -> tuple[bytes, bytes]:
        """(Init segment, fragment of a chunk), as bytes. Raises OSError."""
        with self.video(id).open("rb") as file:
            init = file.read(init_bytes)
            file.seek(chunk.start)
            return init, file.read(chunk.end - chunk.start)

    def cut(self, id: str, num_bytes: int) -> int:
        """Removes what follows the first bytes of a video, if it is longer; returns its length."""
        path = self.video(id)
        size = path.stat().st_size if path.exists() else 0
        if size > num_bytes:
            os.truncate(path, num_bytes)
        return min(size, num_bytes)

    def remove_other_checkpoints(self, id: str, name: str) -> None:
        """Removes all checkpoints of the session but the one of this name."""
        for path in (self._folder / id).glob("checkpoint-*"):
            if path.name != name:
                path.unlink()

    def remove_whole(self, id: str) -> None:
        """Removes the session's whole files."""
        for path in (self._folder / id).glob("whole-*"):
            path.unlink()

    def keep_only(self, id: str, names: Iterable[str]) -> None:
        """Removes the session's files with other names than the video's, the reference's and these."""
        kept = {self.video(id).name, self.reference(id).name, *names}
        for path in (self._folder / id).iterdir():
            if path.name not in kept:
                path.unlink()

    def remove(self, id: str) -> None:
        """Removes the session's folder, if it is there. Whoever has its video open may read on."""
        path = self._folder / id
        if path.exists():
            shutil.rmtree(path)

    def ids(self) -> set[str]:
        """The ids of the sessions that have folders."""
        return {path.name for path in self._folder.iterdir()}


def _flush_folder(folder: Path) -> None:
    """Forces the names of the files in a folder to disk."""
    number = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
