"""The worker: one engine on one thread. Everyone else asks it through verbs and is told through events."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from threading import Event as Flag
from threading import Thread, current_thread

from pagedvid.arguments import whole_number
from pagedvid.engine.engine import Engine
from pagedvid.engine.failures import described
from pagedvid.engine.requests import Continuation, EngineOutput, VideoRequest
from pagedvid.errors import ConfigError, WorkerError
from pagedvid.service.events import Event, StateEvent
from pagedvid.service.inbox import Inbox, Order
from pagedvid.service.last_wish import LastWish, write_all
from pagedvid.service.rebuilding import BUILD_DELAYS_SECONDS
from pagedvid.service.recovery import Change, Checkpoint, CheckpointFiles
from pagedvid.service.stats import DEAD, REBUILDING, STARTING, STOPPED, WORKING, WorkerStats
from pagedvid.service.supervised_engine import SupervisedEngine, plain_step
from pagedvid.service.verbs import Verbs

logger = logging.getLogger(__name__)


class Worker:
    """Makes videos on a thread of its own. Every method may be called from any thread.

    A verb returns a future at once; its result and its errors are those of the engine's verb, and WorkerError when the
    worker ends before it. Verbs are carried out between two steps, in the order in which they came. Once a future is
    done, `stats` shows what the verb did.

    Events are told on the worker's thread, which does nothing else meanwhile: a listener that waits holds up all
    videos, and one that waits for a future of this worker waits for ever. A listener that hears of a video's new state
    finds it in `stats`. One that raises ends the video of that event, with a FailureEvent.

    When the engine breaks it is built again, and the videos go on with the same frames (supervised_engine.py). When it
    cannot be built again the worker is dead: `stats` says so, and no video is told to have failed, because a new
    process can go on with all of them.
    """

    def __init__(
        self,
        build_engine: Callable[[], Engine],
        on_event: Callable[[Event], None],
        *,
        checkpoints: Callable[[Engine], CheckpointFiles] | None = None,
        snapshot_every_chunks: int | None = None,
        build_delays_seconds: Sequence[float] = BUILD_DELAYS_SECONDS,
        take_step: Callable[[Engine], list[EngineOutput]] = plain_step,
    ) -> None:
        """`build_engine`: called on the worker's thread, and again after every break. `checkpoints`: called once with
        the engine; its files are for the verbs `checkpoint` and `restore`. `snapshot_every_chunks`: how often each
        video is copied to host memory, so that little of it has to be made again; None: only when a verb changes its
        course. `build_delays_seconds`: waited before each attempt to build the engine again. `take_step`: takes a
        step of the engine, on the worker's thread. Raises ConfigError for `snapshot_every_chunks` below 1.
        """
        if snapshot_every_chunks is not None:
            whole_number("snapshot_every_chunks", snapshot_every_chunks, 1, error=ConfigError)
        self._build_engine, self._on_event = build_engine, on_event
        self._checkpoints, self._snapshot_every = checkpoints, snapshot_every_chunks
        self._delays, self._take_step = build_delays_seconds, take_step
        self._inbox = Inbox[Verbs]()
        self._stats = WorkerStats(STARTING)
        self._supervised: SupervisedEngine | None = None
        self._stopping = Flag()
        self._last_wish = LastWish(None, 0.0)
        self._written: dict[str, Path] = {}
        self._built: Future[None] = Future()
        self._thread = Thread(target=self._run, name="pagedvid-worker", daemon=True)

    # ------------------------------------------------------------------ life

    def start(self) -> None:
        """Begins. Waits for the first engine, and raises what building it raises; then the worker is dead."""
        self._thread.start()
        self._built.result()

    def stop(self, checkpoint_folder: Path | None = None, *, seconds: float = 30.0) -> dict[str, Path]:
        """Ends the worker after its present step. Verbs that it has not come to fail with WorkerError.

        `checkpoint_folder`: unfinished videos are written there, then finished ones that are kept, while the time
        lasts. Returns the files by id. Raises WorkerError when the step, or the checkpoint that is being written, takes
        longer than `seconds`; the thread ends after it.
        """
        self._last_wish = LastWish(checkpoint_folder, time.monotonic() + seconds)
        self._stopping.set()
        self._inbox.wake()
        is_elsewhere = self._thread.is_alive() and current_thread() is not self._thread
        if is_elsewhere:
            self._thread.join(seconds)
        self._finish(STOPPED, "the worker was stopped")
        if is_elsewhere and self._thread.is_alive():
            raise WorkerError(f"the worker's thread has not ended within {seconds:g} seconds; allow more, or exit")
        return dict(self._written)

    def stats(self) -> WorkerStats:
        """The numbers after the latest step or verb."""
        return self._stats

    # ------------------------------------------------------------------ verbs, as those of Engine

    def submit(self, request: VideoRequest, *, frames_given: int = 0) -> Future[None]:
        """See `Engine.submit`. `frames_given`: output frames that another worker gave out before; they are made again
        and not given out again."""
        return self._inbox.send(lambda verbs: verbs.submit(request, frames_given))

    def refusals(self, requests: Sequence[VideoRequest]) -> Future[dict[str, Exception]]:
        """Those that `submit` would refuse now, with its errors, by id. Nothing is queued."""
        return self._inbox.send(lambda verbs: verbs.refusals(requests))

    def cancel(self, id: str) -> Future[None]:
        """See `Engine.cancel`."""
        return self._inbox.send(lambda verbs: verbs.cancel(id))

    def pause(self, id: str) -> Future[None]:
        """See `Engine.pause`."""
        return self._inbox.send(lambda verbs: verbs.pause(id))

    def resume(self, id: str) -> Future[None]:
        """See `Engine.resume`."""
        return self._inbox.send(lambda verbs: verbs.resume(id))

    def prompt(self, id: str, prompt: str, *, recache: bool = False) -> Future[None]:
        """See `Engine.prompt`. Waits while frames of the video are being made again; so do `fork` and `extend`."""
        return self._inbox.send(lambda verbs: verbs.prompt(id, prompt, recache), of_place=id)

    def fork(self, id: str, continuations: Sequence[Continuation]) -> Future[frozenset[str]]:
        """See `Engine.fork`. Returns the ids of those that depend on nobody, because the source has not begun."""
        return self._inbox.send(lambda verbs: verbs.fork(id, continuations), of_place=id)

    def extend(self, id: str, num_frames: int) -> Future[None]:
        """See `Engine.extend`."""
        return self._inbox.send(lambda verbs: verbs.extend(id, num_frames), of_place=id)

    def report_played(self, id: str, num_frames: int) -> Future[None]:
        """See `Engine.report_played`."""
        return self._inbox.send(lambda verbs: verbs.report_played(id, num_frames))

    def checkpoint(self, id: str, path: Path) -> Future[Checkpoint]:
        """Writes where a video is to a file; a file that was there is replaced. Its frames were told before.

        The video goes on from this file should the engine break, so it must stay until its next checkpoint or its end.
        A prompt that waits for the next chunk, and forks that have not begun, are not part of it. Fails with
        ConfigError for unknown ids and with what writing raises.
        """
        return self._inbox.send(lambda verbs: verbs.checkpoint(id, path))

    def restore(
        self, path: Path, changes: Sequence[Change] = (), *, frames_given: int = 0, id: str | None = None
    ) -> Future[str]:
        """Queues the video of a checkpoint; its id. Frames that it had given out before are not given out again.

        `changes`: asked for before, and not in effect in the checkpoint; they count from its next chunk on.
        `frames_given`: as for `submit`. `id`: that the file must be of. Fails with ConfigError for a file of another
        one, and with what reading the file and `Engine.restore` raise.
        """
        return self._inbox.send(lambda verbs: verbs.restore(path, changes, frames_given, id))

    # ------------------------------------------------------------------ on the worker's thread

    def _run(self) -> None:
        try:
            self._supervised = supervised = self._first_engine()
        except BaseException as error:
            self._finish(DEAD, f"no engine could be built: {error}")
            self._built.set_exception(error)
            return
        self._built.set_result(None)
        try:
            verbs = Verbs(supervised)
            self._work(supervised, verbs)
            self._written = write_all(supervised, verbs, self._last_wish)
            self._finish(STOPPED, "the worker was stopped")
        except Exception as error:
            logger.error("the worker ends: %s", described(error), exc_info=not isinstance(error, WorkerError))
            self._finish(STOPPED if self._stopping.is_set() else DEAD, str(error))
        finally:
            supervised.close()

    def _first_engine(self) -> SupervisedEngine:
        return SupervisedEngine(
            self._build_announced,
            self._tell,
            checkpoints=self._checkpoints,
            snapshot_every_chunks=self._snapshot_every,
            build_delays_seconds=self._delays,
            take_step=self._take_step,
            wait=self._stopping.wait,
        )

    def _build_announced(self) -> Engine:
        if self._built.done():
            self._stats = replace(self._stats, state=REBUILDING)
        return self._build_engine()

    def _tell(self, event: Event) -> None:
        if isinstance(event, StateEvent) and self._supervised is not None:
            self._stats = self._supervised.stats(self._stats.state)  # not only once the step is over
        self._on_event(event)

    def _work(self, supervised: SupervisedEngine, verbs: Verbs) -> None:
        """Verbs and steps in turns until the worker is stopped. Raises WorkerError when the engine is gone for good."""

        def is_ready(order: Order[Verbs]) -> bool:
            return order.of_place is None or not supervised.is_behind(order.of_place)

        self._stats = supervised.stats(WORKING)
        while not self._stopping.is_set():
            orders = self._inbox.take(is_ready, waits=not supervised.has_work)
            for order in orders:
                if is_ready(order):  # one before it may have put its video behind
                    order.carry_out(verbs)
                else:
                    self._inbox.put_back(order)
            self._stats = supervised.stats(WORKING)
            for order in orders:
                order.answer()
            if supervised.has_work:
                supervised.step()
                self._stats = supervised.stats(WORKING)

    def _finish(self, state: str, reason: str) -> None:
        """The worker does nothing more; the first reason counts."""
        if self._stats.state not in (STOPPED, DEAD):
            self._stats = replace(self._stats, state=state, reason=reason)
        self._inbox.close(reason)
