"""Sessions without a worker: a test makes their chunks, and everything happens at once.

Words of a prompt: `huge` (fits no memory), `full` (the service is full), `unknown` (no word is known), `stopping`,
`dead` (the worker is), `disk` (it is full), `broken` (an error that nobody expects).
"""

from __future__ import annotations

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from pagedvid.engine.pace import TokenSeconds
from pagedvid.engine.requests import EngineStats, VideoStatus
from pagedvid.errors import CapacityError, ConfigError, PromptError, WorkerError
from pagedvid.output.fragments import fragment, init_segment, write_whole
from pagedvid.service.errors import Busy, Closing, Conflict, NotFound, StorageError
from pagedvid.service.records import (
    CANCELLED,
    COMPLETED,
    FAILED,
    IN_PROGRESS,
    PAUSED,
    PAUSED_BY_USER,
    QUEUED,
    UNFINISHED,
    NewFork,
    NewSession,
    RecordedChunk,
    Recording,
    Reference,
    SessionError,
    SessionPage,
    SessionRecord,
)
from pagedvid.service.replica_stats import ReplicaStats
from pagedvid.service.session_events import ChunkRecorded, CreditChanged, SessionEvent, SessionFailed, SessionState
from pagedvid.service.stats import WORKING, CacheInfo, Durations, PoolStats, WorkerStats

RATE, SIZE, FRAMES_PER_CHUNK = 12, 32, 4


def frames_of(first_frame: int, num_frames: int) -> np.ndarray:
    """Grey frames, each brighter than the one before."""
    levels = 20 + 4 * np.arange(first_frame, first_frame + num_frames) % 200
    return np.broadcast_to(levels.astype(np.uint8)[:, None, None, None], (num_frames, SIZE, SIZE, 3)).copy()


@dataclass
class Made:
    """What there is of one session."""

    record: SessionRecord
    path: Path
    chunks: list[RecordedChunk] = field(default_factory=list)


class FakeSessions:
    """As pagedvid.service.sessions.Sessions towards HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.calls: list[tuple[object, ...]] = []
        """Verbs that have no effect here, with their arguments."""
        self.worker_state = WORKING
        self._lock = threading.RLock()
        self.draining: set[int] = set()
        self.references: dict[str, Reference | None] = {}
        """By id, what sessions go on from."""
        self._made: dict[str, Made] = {}
        self._listeners: list[tuple[str | None, Callable[[SessionEvent], None]]] = []

    # ------------------------------------------------------------------ for tests

    def chunk(self, id: str) -> None:
        """Records the next chunk of a session; the last one completes it."""
        with self._lock:
            made = self._found(id)
            record = made.record
            number = min(FRAMES_PER_CHUNK, record.num_frames - record.frames_done)
            if record.state == QUEUED:
                self._change(id, state=IN_PROGRESS)
            content = fragment(
                frames_of(record.frames_done, number), record.frames_done, Fraction(RATE), len(made.chunks) + 1
            )
            if not made.chunks:
                made.path.write_bytes(init_segment(SIZE, SIZE, Fraction(RATE)))
            start = made.path.stat().st_size
            with made.path.open("ab") as file:
                file.write(content)
            made.chunks.append(RecordedChunk(len(made.chunks), record.frames_done, number, start, start + len(content)))
            done = record.frames_done + number
            self._set(id, frames_done=done, chunks_done=len(made.chunks), width=SIZE, height=SIZE)
            self._tell(ChunkRecorded(id, len(made.chunks) - 1, done - number, number, done))
            if done == record.num_frames:
                self._change(id, state=COMPLETED, completed_at=time.time())

    def finish(self, id: str) -> None:
        """Records all chunks that are missing."""
        while self.get(id).state in UNFINISHED:
            self.chunk(id)

    def credit(self, id: str, seconds: float) -> None:
        """The credit of a session changes."""
        self._tell(CreditChanged(id, seconds))

    def fail(self, id: str) -> None:
        """A session fails."""
        error = SessionError("ModelError", "the model broke")
        self._set(id, state=FAILED, error=error)
        self._tell(SessionFailed(id, error))

    @property
    def num_listeners(self) -> int:
        return len(self._listeners)

    # ------------------------------------------------------------------ verbs

    def create(self, new: NewSession) -> SessionRecord:
        if "huge" in new.prompt:
            raise CapacityError("needs 500 pages at its peak; the whole pool has 100")
        if "full" in new.prompt:
            raise Busy("64 videos wait, as many as may", 7.2, {"queued": 64, "max_queued": 64})
        if "unknown" in new.prompt:
            raise PromptError(f"no word of the prompt {new.prompt!r} is known")
        if "stopping" in new.prompt:
            raise Closing(5)
        if "dead" in new.prompt:
            raise WorkerError("the worker was stopped")
        if "disk" in new.prompt:
            raise StorageError("/a/secret/path: No space left on device; check the disk")
        if "broken" in new.prompt:
            raise ZeroDivisionError("a secret")
        return self._add(new.kind, new.prompt, new.num_frames, new.seed, None, new)

    def _add(
        self, kind: str, prompt: str, num_frames: int, seed: int, source: str | None, new: NewSession
    ) -> SessionRecord:
        with self._lock:
            id = f"{kind}_{secrets.token_hex(12)}"
            record = SessionRecord(
                id=id, kind=kind, state=QUEUED, pause_reason=None, prompt=prompt, num_frames=num_frames, frames_done=0,
                chunks_done=0, num_chunks=-(-num_frames // FRAMES_PER_CHUNK), seed=seed, created_at=time.time(),
                completed_at=None, error=None, source_id=source, shares_history=source is not None,
                priority=new.priority, inputs={} if new.reference is None else {new.reference.kind: "a file"},
                live_frames_per_second=new.live_frames_per_second, frames_per_second=RATE, width=None, height=None,
                stored_bytes=1000, bf16_bytes=8000, init_bytes=0, later_prompts=new.later_prompts,
            )  # fmt: skip
            self._made[id] = Made(record, self.folder / f"{id}.mp4")
            self.references[id] = new.reference
            self._tell(SessionState(id, QUEUED))
            return record

    def delete(self, id: str) -> None:
        with self._lock:
            made = self._found(id)
            del self._made[id]
            made.path.unlink(missing_ok=True)
        self._tell(SessionState(id, CANCELLED))

    def pause(self, id: str) -> SessionRecord:
        self._needs_unfinished(id)
        return self._change(id, state=PAUSED, pause_reason=PAUSED_BY_USER)

    def resume(self, id: str) -> SessionRecord:
        self._needs_unfinished(id)
        return self._change(id, state=IN_PROGRESS, pause_reason=None)

    def prompt(self, id: str, prompt: str, *, recache: bool = False) -> SessionRecord:
        self._needs_unfinished(id)
        if "unknown" in prompt:
            raise PromptError(f"no word of the prompt {prompt!r} is known")
        self.calls.append(("prompt", id, recache))
        return self._set(id, prompt=prompt)

    def fork(self, id: str, forks: Sequence[NewFork]) -> list[SessionRecord]:
        with self._lock:
            source = self._found(id)
            if source.record.state == FAILED:
                raise Conflict(f"{id} has failed; fork another session")
            return [self._fork(source, fork) for fork in forks]

    def _fork(self, source: Made, fork: NewFork) -> SessionRecord:
        record = source.record
        factor = 2 if record.state == COMPLETED else 1
        new = NewSession("", 1, live_frames_per_second=record.live_frames_per_second)
        added = self._add(
            fork.kind or record.kind,
            record.prompt if fork.prompt is None else fork.prompt,
            factor * record.num_frames if fork.num_frames is None else fork.num_frames,
            record.seed if fork.seed is None else fork.seed,
            record.id,
            new,
        )
        made = self._made[added.id]
        made.chunks = list(source.chunks)
        if source.chunks:
            shutil.copyfile(source.path, made.path)
        return self._set(added.id, frames_done=record.frames_done, chunks_done=record.chunks_done)

    def extend(self, id: str, num_frames: int) -> SessionRecord:
        record = self.get(id)
        if num_frames < record.frames_done:
            raise Conflict(f"{id} has {record.frames_done} frames; give at least as many")
        state = IN_PROGRESS if record.state == COMPLETED and num_frames > record.frames_done else record.state
        return self._change(id, num_frames=num_frames, state=state)

    def played(self, id: str, num_frames: int) -> None:
        self._found(id)
        self.calls.append(("played", id, num_frames))

    def client_came(self, id: str) -> None:
        self._found(id)
        self.calls.append(("came", id))

    def client_left(self, id: str) -> None:
        self.calls.append(("left", id))

    # ------------------------------------------------------------------ reading

    def get(self, id: str) -> SessionRecord:
        return self._found(id).record

    def list(
        self, limit: int = 20, after: str | None = None, *, newest_first: bool = True, kind: str | None = None
    ) -> SessionPage:
        with self._lock:
            records = [made.record for made in self._made.values() if kind in (None, made.record.kind)]
        if newest_first:
            records.reverse()
        if after is not None:
            ids = [record.id for record in records]
            if after not in ids:
                raise NotFound(f"there is no session {after}")
            records = records[ids.index(after) + 1 :]
        return SessionPage(tuple(records[:limit]), len(records) > limit)

    def recording(self, id: str, first_chunk: int = 0) -> Recording:
        with self._lock:
            made = self._found(id)
            init_bytes = made.chunks[0].start if made.chunks else 0
            return Recording(made.path, init_bytes, tuple(made.chunks[first_chunk:]))

    def frames(self, id: str, chunk_index: int) -> np.ndarray:
        chunk = self._found(id).chunks[chunk_index]
        return frames_of(chunk.first_frame, chunk.num_frames)

    def credit_seconds(self, id: str) -> float | None:
        return 1.5 if self.get(id).is_live else None

    def whole_file(self, id: str) -> Path:
        made = self._found(id)
        if made.record.state != COMPLETED:
            raise Conflict(f"{id} is {made.record.state}; wait until it is completed")
        path = made.path.with_suffix(".whole.mp4")
        write_whole(made.path, made.chunks[-1].end, path)
        return path

    def subscribe(self, id: str | None, callback: Callable[[SessionEvent], None]) -> Callable[[], None]:
        if id is not None:
            self._found(id)
        entry = (id, callback)
        self._listeners.append(entry)
        return lambda: self._listeners.remove(entry)

    def replicas(self) -> list[ReplicaStats]:
        return [ReplicaStats(number, number in self.draining, 3, self.stats()) for number in range(2)]

    def drain(self, number: int) -> None:
        if number > 1:
            raise ConfigError(f"there is no replica {number}; give 0 to 1")
        self.draining.add(number)

    def refill(self, number: int) -> None:
        self.draining.discard(number)

    def stats(self) -> WorkerStats:
        videos = tuple(
            VideoStatus(
                id=made.record.id, state="running", prompt=made.record.prompt, num_frames=made.record.num_frames,
                num_frames_out=made.record.frames_done, num_output_frames=made.record.frames_done, is_live=False,
                credit_seconds=None, own_pages=3, shared_pages=1, host_bytes=0,
            )
            for made in self._made.values() if made.record.state == IN_PROGRESS
        )  # fmt: skip
        return WorkerStats(
            self.worker_state,
            videos=videos,
            pool=PoolStats(100, 4096, 60, 30, 10, 40_000, 320_000, 0, 0, shared_pages=4, num_evicted_chunks=5),
            engine=EngineStats(
                0, len(videos), 2, 1, 7, num_forks=6, num_steps=70, forward_seconds=1.5, step_seconds=2.0,
                num_swaps_out=3, num_swaps_in=2, swapped_out_bytes=3000, swapped_in_bytes=2000,
            ),
            token_seconds=TokenSeconds(1e-4, 2e-4),
            cache=CacheInfo("demo", "int4/int2", 4096, 1, 4),
            queue=Durations((0.5, 2), (4, 2, 1), 9.5),
        )  # fmt: skip

    # ------------------------------------------------------------------ inside

    def _found(self, id: str) -> Made:
        if id not in self._made:
            raise NotFound(f"there is no session {id}; it may have been deleted")
        return self._made[id]

    def _needs_unfinished(self, id: str) -> None:
        state = self.get(id).state
        if state not in UNFINISHED:
            raise Conflict(f"{id} is {state}; this is possible while it is made only")

    def _set(self, id: str, **changes: object) -> SessionRecord:
        made = self._found(id)
        made.record = replace(made.record, **changes)
        return made.record

    def _change(self, id: str, **changes: object) -> SessionRecord:
        record = self._set(id, **changes)
        self._tell(SessionState(id, record.state))
        return record

    def _tell(self, event: SessionEvent) -> None:
        for id, callback in list(self._listeners):
            if id in (None, event.id):
                callback(event)
