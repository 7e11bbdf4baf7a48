"""Many workers behind the interface of one: each session is on one of them, its replica, and stays there.

A new session goes where it will be made soonest: where nobody waits for pages, and then where its share of the measured
rate is largest. Forks go where their source is, because they share its pages. A replica that dies is built again; its
sessions are told to be lost, and whoever hears that gives them once more, from their checkpoints or anew, to whichever
replica has room. So does whoever empties a replica that is being drained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event as Flag
from threading import RLock, Thread
from typing import Any

from pagedvid.engine.failures import described
from pagedvid.engine.requests import Continuation, VideoRequest
from pagedvid.errors import ConfigError, WorkerError
from pagedvid.service.errors import LostWorkerError
from pagedvid.service.events import GONE, Event, FailureEvent, LostEvent, StateEvent
from pagedvid.service.recovery import Change, Checkpoint
from pagedvid.service.replica_stats import ReplicaStats, soonest, together
from pagedvid.service.stats import DEAD, STARTING, WorkerStats
from pagedvid.service.video_maker import VideoMaker

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 0.2
"""How often the replicas are looked at."""
_REBUILD_SECONDS = 5.0
"""Waited before a replica that could not be started is started again."""

Build = Callable[[Callable[[Event], None]], VideoMaker]
"""Makes a worker that tells its events to the given function, and does not start it."""


@dataclass(eq=False)
class _Replica:
    number: int
    worker: VideoMaker
    ids: set[str] = field(default_factory=set)
    """Of its sessions that are not over."""
    is_up: bool = False
    is_draining: bool = False

    def stats(self) -> ReplicaStats:
        worker = self.worker.stats() if self.is_up else WorkerStats(STARTING)
        return ReplicaStats(self.number, self.is_draining, len(self.ids), worker)


class Replicas:
    """So many workers, numbered from 0. Every method may be called from any thread."""

    def __init__(self, build: Build, num_replicas: int, on_event: Callable[[Event], None]) -> None:
        """Nothing is started. `on_event`: is told the events of all, on threads of the workers, and `LostEvent`s."""
        self._build, self._on_event = build, on_event
        self._lock = RLock()
        self._places: dict[str, _Replica] = {}
        """Where each session is."""
        self._lost: set[str] = set()
        """Sessions of replicas that have ended, until they are given again."""
        self._replicas = [self._new(number) for number in range(num_replicas)]
        self._stopping = Flag()
        self._watch = Thread(target=self._look_after_them, name="pagedvid-replicas", daemon=True)

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Starts all at the same time. Raises what building an engine raises."""
        with ThreadPoolExecutor(len(self._replicas)) as threads:
            list(threads.map(lambda replica: replica.worker.start(), self._replicas))
        for replica in self._replicas:
            replica.is_up = True
        self._watch.start()

    def stop(self, *, seconds: float) -> None:
        """Ends all at the same time. Raises WorkerError when one takes longer."""
        self._stopping.set()
        with ThreadPoolExecutor(len(self._replicas)) as threads:
            list(threads.map(lambda replica: replica.worker.stop(seconds=seconds), self._replicas))

    def stats(self) -> WorkerStats:
        """The numbers of all together."""
        return together([replica.stats().worker for replica in self._replicas if replica.is_up])

    def replicas(self) -> list[ReplicaStats]:
        """The numbers of each."""
        return [replica.stats() for replica in self._replicas]

    def drain(self, number: int) -> list[str]:
        """From now on a replica gets no new session; the ids of those that are on it, which the caller moves.

        Raises ConfigError when there is no such replica, or none beside it that takes sessions.
        """
        with self._lock:
            replica = self._replica(number)
            if not [it for it in self._takers() if it is not replica]:
                raise ConfigError(f"no replica but {number} takes sessions, so that it cannot be drained")
            replica.is_draining = True
            return sorted(replica.ids)

    def refill(self, number: int) -> None:
        """A drained replica takes sessions again. Raises ConfigError when there is no such replica."""
        self._replica(number).is_draining = False

    def _replica(self, number: int) -> _Replica:
        if not 0 <= number < len(self._replicas):
            raise ConfigError(f"there is no replica {number}; give 0 to {len(self._replicas) - 1}")
        return self._replicas[number]

    # ------------------------------------------------------------------ verbs, as those of Worker

    def submit(self, request: VideoRequest, *, frames_given: int = 0) -> Future[None]:
        """See `Worker.submit`."""
        return self._place([request.id], lambda worker: worker.submit(request, frames_given=frames_given))

    def restore(
        self, path: Path, changes: Sequence[Change] = (), *, frames_given: int = 0, id: str | None = None
    ) -> Future[str]:
        """See `Worker.restore`; the path is one of all machines, and the id has to be given."""
        if id is None:
            raise ConfigError("a video that is restored on one of many replicas needs its id; give `id`")
        return self._place([id], lambda it: it.restore(path, changes, frames_given=frames_given, id=id))

    def fork(self, id: str, continuations: Sequence[Continuation]) -> Future[frozenset[str]]:
        """See `Worker.fork`."""
        ids = [continuation.id for continuation in continuations]
        return self._ask(id, lambda worker: worker.fork(id, continuations), ids)

    def cancel(self, id: str) -> Future[None]:
        """See `Worker.cancel`."""
        with self._lock:
            cancelled = self._ask(id, lambda worker: worker.cancel(id))
            self._forget(id)
            self._lost.discard(id)
            return cancelled

    def pause(self, id: str) -> Future[None]:
        """See `Worker.pause`."""
        return self._ask(id, lambda worker: worker.pause(id))

    def resume(self, id: str) -> Future[None]:
        """See `Worker.resume`."""
        return self._ask(id, lambda worker: worker.resume(id))

    def prompt(self, id: str, prompt: str, *, recache: bool = False) -> Future[None]:
        """See `Worker.prompt`."""
        return self._ask(id, lambda worker: worker.prompt(id, prompt, recache=recache))

    def extend(self, id: str, num_frames: int) -> Future[None]:
        """See `Worker.extend`."""
        return self._ask(id, lambda worker: worker.extend(id, num_frames))

    def report_played(self, id: str, num_frames: int) -> Future[None]:
        """See `Worker.report_played`."""
        return self._ask(id, lambda worker: worker.report_played(id, num_frames))

    def checkpoint(self, id: str, path: Path) -> Future[Checkpoint]:
        """See `Worker.checkpoint`; the path is one of all machines."""
        return self._ask(id, lambda worker: worker.checkpoint(id, path))

    # ------------------------------------------------------------------ where sessions are

    def holds(self, id: str) -> bool:
        """Whether a session is on a replica that has not been found dead."""
        return id in self._places

    def _takers(self) -> list[_Replica]:
        return [replica for replica in self._replicas if replica.is_up and not replica.is_draining]

    def _place(self, ids: Sequence[str], verb: Callable[[VideoMaker], Future[Any]]) -> Future[Any]:
        with self._lock:
            takers = self._takers()
            if not takers:
                return _failed(LostWorkerError("no replica is up; they are built again, try again later"))
            place = soonest([replica.stats() for replica in takers])
            return self._send(self._replicas[place.number], verb, ids)

    def _ask(self, id: str, verb: Callable[[VideoMaker], Future[Any]], new_ids: Sequence[str] = ()) -> Future[Any]:
        with self._lock:
            replica = self._places.get(id)
            if id in self._lost:
                return _failed(LostWorkerError(f"the replica of {id!r} has ended; it goes on elsewhere in a moment"))
            if replica is None:
                return _failed(ConfigError(f"request {id!r} is on no replica; it has ended, or never was"))
            return self._send(replica, verb, new_ids)

    def _send(
        self, replica: _Replica, verb: Callable[[VideoMaker], Future[Any]], new_ids: Sequence[str]
    ) -> Future[Any]:
        """Under the lock, so that verbs for one session keep their order. `new_ids` are there unless it fails."""
        for id in new_ids:
            self._places[id] = replica
            replica.ids.add(id)
            self._lost.discard(id)
        answer: Future[Any] = Future()
        worker_answer = verb(replica.worker)

        def pass_on(done: Future[Any]) -> None:
            error = CancelledError() if done.cancelled() else done.exception()
            if isinstance(error, WorkerError) and not self._stopping.is_set():  # `stats` may not say so yet
                error = LostWorkerError(str(error))
            if error is not None:
                self._take_back(new_ids, replica, isinstance(error, LostWorkerError))
            if not answer.set_running_or_notify_cancel():
                return
            if error is None:
                answer.set_result(done.result())
            else:
                answer.set_exception(error)

        worker_answer.add_done_callback(pass_on)
        answer.add_done_callback(lambda done: done.cancelled() and worker_answer.cancel())
        return answer

    def _take_back(self, ids: Sequence[str], replica: _Replica, are_lost: bool) -> None:
        with self._lock:
            ids = [id for id in ids if self._places.get(id) is replica]  # otherwise it was given again already
            for id in ids:
                self._forget(id)
            self._lost.update(ids if are_lost else ())

    def _forget(self, id: str) -> None:
        with self._lock:
            replica = self._places.pop(id, None)
            if replica is not None:
                replica.ids.discard(id)

    def _hear(self, replica: _Replica, event: Event) -> None:
        is_over = isinstance(event, FailureEvent) or (isinstance(event, StateEvent) and event.state == GONE)
        if is_over and self._places.get(event.id) is replica:  # type: ignore[union-attr]
            self._forget(event.id)  # type: ignore[union-attr]
        self._on_event(event)

    # ------------------------------------------------------------------ replicas that die

    def _new(self, number: int) -> _Replica:
        replica = _Replica(number, worker=None)  # type: ignore[arg-type]
        replica.worker = self._build(partial(self._hear, replica))
        return replica

    def _look_after_them(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            for replica in list(self._replicas):
                if replica.is_up and replica.worker.stats().state == DEAD:
                    self._replace(replica)

    def _replace(self, dead: _Replica) -> None:
        reason = dead.worker.stats().reason
        logger.error("replica %d has ended and is built again: %s", dead.number, reason)
        with self._lock:
            replica = self._new(dead.number)
            replica.is_draining = dead.is_draining
            self._replicas[dead.number] = replica
            lost = frozenset(dead.ids)
            for id in lost:
                self._forget(id)
            self._lost |= lost
        self._on_event(LostEvent(lost, reason))
        Thread(target=self._start_again, args=(replica,), name="pagedvid-replica-start", daemon=True).start()

    def _start_again(self, replica: _Replica) -> None:
        while not self._stopping.is_set():
            try:
                replica.worker.start()
            except Exception as error:
                logger.error("replica %d cannot be started: %s", replica.number, described(error))
                self._stopping.wait(_REBUILD_SECONDS)
                replica.worker = self._build(partial(self._hear, replica))
            else:
                replica.is_up = True
                return


def _failed(error: Exception) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_exception(error)
    return future
