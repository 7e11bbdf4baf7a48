"""A service that is killed at random moments, again and again, keeps every promise: see crashing.py."""

from __future__ import annotations

import json
import multiprocessing
import random
from fractions import Fraction
from pathlib import Path

import pytest

from pagedvid.output.fragments import fragment
from tests.service.crashing import CRASHED, work
from tests.service.fake_engine import chunk_frames, next_digest
from tests.service.listener import wait_until
from tests.service.services import VIDEO, Service

NUM_CRASHES = 4
"""Of one folder, one after the other."""
MOST_MOMENTS = 250


@pytest.fixture(scope="module")
def processes():
    """Children of a process that has imported everything and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.service.crashing"])
    return context


@pytest.mark.parametrize("seed", range(6))
def test_every_promise_is_kept(processes, tmp_path, seed):
    moments = random.Random(seed)
    data, log = tmp_path / "data", tmp_path / "log"
    codes = []
    for crash in range(NUM_CRASHES):
        process = processes.Process(target=work, args=(data, log, 100 * seed + crash, moments.randrange(MOST_MOMENTS)))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
    assert set(codes) <= {CRASHED, 0} and CRASHED in codes
    promises = Promises(log)
    service = Service(data)
    try:
        wait_until(lambda: all(it.state in ("completed", "failed") for it in service.sessions.list(100).records))
        records = {record.id for record in service.sessions.list(100).records}
        for id in promises.sessions.keys() & records:
            promises.check(service, id)
        assert promises.sessions.keys() - records <= promises.asked_to_delete
        assert not records & promises.deleted
        assert {path.name for path in (data / "sessions").iterdir()} == records
        wait_until(lambda: not service.sessions.stats().videos)
    finally:
        service.close()


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
