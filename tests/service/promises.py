"""What a client was promised, from the log that it wrote (crashing.py), and whether it was kept."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

from pagedvid.output.fragments import fragment
from tests.service.fake_engine import chunk_frames, next_digest
from tests.service.services import VIDEO, Service


class Promises:
    """What the verbs that returned have promised."""

    def __init__(self, log: Path) -> None:
        self.sessions: dict[str, dict] = {}
        self.deleted: set[str] = set()
        self.asked_to_delete: set[str] = set()
        self.courses: dict[str, list[tuple[int, str]]] = {}
        """(Seed, prompt) pairs that a session's chunks may have, in their order. A prompt that was asked for may count
        although the process died before it could say so."""
        for line in log.read_text().splitlines():
            self._read(json.loads(line))

    def _read(self, line: dict) -> None:
        id, source = line["id"], line.get("source")
        is_new = line["verb"] in ("create", "fork")
        if (source if is_new else id) not in {None, *self.courses}:
            return  # of a session that a crash kept from being promised
        if line["verb"] == "ask to delete":
            self.asked_to_delete.add(id)
        elif line["verb"] == "refuse to delete":
            self.asked_to_delete.discard(id)
        elif line["verb"] == "delete":
            self.deleted.add(id)
            del self.sessions[id]
        elif line["verb"] == "ask for a prompt":
            seed = self.courses[id][-1][0]
            self.courses[id].append((seed, line["prompt"]))
        elif line["verb"] == "extend":
            self.sessions[id]["num_frames"] = line["num_frames"]
        else:
            self.sessions[id] = line
            self.courses[id] = [*self.courses.get(source, []), (line["seed"], line["prompt"])]

    def check_all(self, service: Service, data: Path) -> None:
        """Of a service that has made everything."""
        records = {record.id for record in service.sessions.list(100).records}
        for id in self.sessions.keys() & records:
            self.check(service, id)
        assert self.sessions.keys() - records <= self.asked_to_delete
        assert not records & self.deleted
        assert {path.name for path in (data / "sessions").iterdir()} == records

    def check(self, service: Service, id: str) -> None:
        record, promised = service.sessions.get(id), self.sessions[id]
        assert record.state == "completed", record.error
        assert record.frames_done == record.num_frames >= promised["num_frames"]
        recording = service.sessions.recording(id)
        content, digest, at = recording.path.read_bytes(), 0, 0
        assert len(content) == recording.end
        for chunk in recording.chunks:
            part = content[chunk.start : chunk.end]
            digest, at = self._follow(id, digest, at, chunk, part)

    def _follow(self, id: str, digest: int, at: int, chunk, part: bytes) -> tuple[int, int]:
        """The digest behind a chunk, and where in its course the session is; the chunk must be the one that follows."""
        course, rate = self.courses[id], Fraction(VIDEO.frames_per_second)
        for place in range(at, len(course)):
            then = next_digest(digest, *course[place])
            frames = chunk_frames(then, chunk.num_frames)
            if fragment(frames, chunk.first_frame, rate, chunk.index + 1) == part:
                return then, place
        raise AssertionError(f"chunk {chunk.index} of {id} has frames of no allowed course")
