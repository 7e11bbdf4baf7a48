"""What a chunk and a session cost the HTTP process of a service, measured with its own classes."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pagedvid.engine.requests import VideoRequest
from pagedvid.output.fragments import fragment
from pagedvid.service.events import ChunkEvent, Event
from pagedvid.service.recorder import Recorder
from pagedvid.service.records import NewSession, RecordedChunk, SessionLimits, VideoFormat
from pagedvid.service.replicas import Replicas
from pagedvid.service.session_files import SessionFiles
from pagedvid.service.sessions import Sessions
from pagedvid.service.store import Store
from pagedvid.service.stored_chunks import NewChunk
from scaling.stand_in import StandIn
from scaling.timing import Cost, cost_of

Frames = NDArray[np.uint8]
FRAMES_PER_SECOND = 16.0
_RATE = Fraction(16)
_TINY = (2, 16, 16, 3)
"""A chunk whose pixels cost next to nothing."""
_LOOK_SECONDS = 0.02
"""How often it is looked whether all is recorded."""
_MOST = 10**6
_LIMITS = SessionLimits(max_queued=_MOST, max_live=_MOST, checkpoint_chunks=_MOST)
_LIVE = NewSession("a prompt", _MOST, live_frames_per_second=FRAMES_PER_SECOND)


def moving_frames(num_frames: int, height: int, width: int, seed: int) -> Frames:
    """Waves that move, and a little noise: uint8 [frames, height, width, 3]. What it costs to encode a video depends on
    its content; this one is neither still nor noise."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    frames = np.empty((num_frames, height, width, 3), np.uint8)
    for number in range(num_frames):
        for channel in range(3):
            wave = np.sin((x + 3 * number) / (17 + 9 * channel)) + np.sin((y - 2 * number) / (23 - 5 * channel))
            noise = random.normal(0, 2, (height, width)).astype(np.float32)
            frames[number, :, :, channel] = np.clip(128 + 50 * wave + noise, 0, 255)
    return frames


def encoding(frames_FHWC: Frames, repetitions: int) -> tuple[Cost, int]:
    """(What encoding a chunk costs, bytes of its fragment)."""
    return cost_of(lambda: fragment(frames_FHWC, 0, _RATE, 1), repetitions), len(fragment(frames_FHWC, 0, _RATE, 1))


def writing(num_bytes: int, folder: Path, repetitions: int) -> tuple[Cost, Cost]:
    """(What appending a fragment to its file costs, what its row in SQLite costs). Each ends with the disk's flush."""
    files, store = SessionFiles(folder / "sessions"), Store(folder / "rows.sqlite", VideoFormat(FRAMES_PER_SECOND, 3))
    store.insert("video", NewSession("a prompt", _MOST))
    files.make("video")
    content, places = bytes(num_bytes), itertools.count()
    append = cost_of(lambda: files.append("video", next(places) * num_bytes, content), repetitions)
    numbers = itertools.count()

    def add() -> None:
        number = next(numbers)
        place = RecordedChunk(number, 12 * number, 12, number * num_bytes, (number + 1) * num_bytes)
        store.chunks.add("video", NewChunk(place, 800, 832, 480, 0, 0))

    row = cost_of(add, repetitions)
    store.close()
    return append, row


def queueing(num_events: int) -> float:
    """CPU microseconds from a worker's thread to the recorder's, for each event."""
    recorder = Recorder(lambda event: None, lambda event: None)
    recorder.start()
    event = chunk_event("video", 0, np.zeros(_TINY, np.uint8))
    began = time.process_time()
    for _ in range(num_events):
        recorder.tell(event)
    recorder.stop()
    return 1e6 * (time.process_time() - began) / num_events


def replicas_costs(num_replicas: int, videos_each: int, repetitions: int) -> dict[str, Cost]:
    """What `Replicas` costs for each event, for each new session, and each time that it sums up the numbers of all."""
    workers: list[StandIn] = []

    def build(tell: Callable[[Event], None]) -> StandIn:
        workers.append(StandIn(tell, videos_each))
        return workers[-1]

    replicas = Replicas(build, num_replicas, lambda event: None)
    event = chunk_event("video", 0, np.zeros(_TINY, np.uint8))
    hear = cost_of(lambda: workers[0].tell(event), repetitions, 1000)
    replicas.start()
    numbers = itertools.count()
    place = cost_of(lambda: replicas.submit(VideoRequest(f"video_{next(numbers)}", "a prompt", 96)), repetitions)
    stats = cost_of(replicas.stats, repetitions)
    replicas.stop(seconds=5)
    return {"hear": hear, "place": place, "stats": stats}


@contextmanager
def service(folder: Path) -> Iterator[tuple[Sessions, StandIn]]:
    """Sessions over a stand-in, which tells what it is told to tell."""
    workers: list[StandIn] = []

    def build(tell: Callable[[Event], None]) -> StandIn:
        workers.append(StandIn(tell))
        return workers[-1]

    sessions = Sessions(folder, build, VideoFormat(FRAMES_PER_SECOND, 3), _LIMITS)
    sessions.start()
    try:
        yield sessions, workers[0]
    finally:
        sessions.close(5)


def bookkeeping(folder: Path, num_sessions: int, num_rounds: int) -> float:
    """CPU microseconds of the whole service for each chunk, beside encoding it: median over rounds, in each of which
    every session has one chunk."""
    tiny = np.zeros(_TINY, np.uint8)
    encode = cost_of(lambda: fragment(tiny, 0, _RATE, 1), 30).cpu_us
    with service(folder) as (sessions, worker):
        ids = [sessions.create(NewSession("a prompt", _MOST)).id for _ in range(num_sessions)]
        numbers = itertools.count()

        def one_round() -> None:
            number = next(numbers)
            for id in ids:
                worker.tell(chunk_event(id, number, tiny))
            while sessions.get(ids[-1]).chunks_done <= number:
                time.sleep(_LOOK_SECONDS)

        return cost_of(one_round, num_rounds).cpu_us / num_sessions - encode


def watching(folder: Path, num_sessions: int, seconds: float) -> float:
    """CPU microseconds of the whole service for each live session and second, while nothing is made."""
    with service(folder) as (sessions, _):
        quiet = _cpu_share(seconds)
        for _ in range(num_sessions):
            sessions.create(_LIVE)
        return 1e6 * (_cpu_share(seconds) - quiet) / num_sessions


def _cpu_share(seconds: float) -> float:
    """CPU seconds of this process in a second, while this thread sleeps."""
    began = time.process_time()
    time.sleep(seconds)
    return (time.process_time() - began) / seconds


def chunk_event(id: str, number: int, frames: Frames) -> ChunkEvent:
    """As a worker tells of the chunk of this number."""
    return ChunkEvent(id, number, number * len(frames), frames, is_last=False, stored_bytes=0, bf16_bytes=0)
