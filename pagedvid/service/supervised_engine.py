"""An engine that tells what happens to its videos, and that is built again when it breaks. For one thread.

An error of one video ends that video. After an IntegrityError, the loss of the device, or any other error that comes
out of a step, the engine is closed and built again, and every video goes on from its base (recovery.py). Frames that
were given out are not given out again. Those behind them are the frames that the first engine would have made, to the
last bit if the engine is reproducible or the video runs alone, otherwise but for rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

from pagedvid.engine.engine import Engine
from pagedvid.engine.failures import described, presentable
from pagedvid.engine.requests import EngineOutput, RequestFailure, VideoStatus
from pagedvid.engine.snapshot import JobSnapshot
from pagedvid.engine.states import PAUSED, WAITING
from pagedvid.errors import ConfigError, StateError, WorkerError
from pagedvid.service.events import Event, RebuiltEvent
from pagedvid.service.rebuilding import BUILD_DELAYS_SECONDS, breaks_engine, build_again, is_lost_device, wait
from pagedvid.service.recovery import CheckpointFiles, VideoRecord
from pagedvid.service.stats import WorkerStats, cache_info, pool_stats
from pagedvid.service.video_book import VideoBook

logger = logging.getLogger(__name__)

MOST_REBUILDS_IN_A_ROW = 10
"""Engines that may break before one of them has taken a step."""

R = TypeVar("R")


def plain_step(engine: Engine) -> list[EngineOutput]:
    """Takes one step of the engine and returns its outputs."""
    return engine.step()


class SupervisedEngine:
    """An engine, and after each break another one for the same videos."""

    def __init__(
        self,
        build_engine: Callable[[], Engine],
        on_event: Callable[[Event], None],
        *,
        checkpoints: Callable[[Engine], CheckpointFiles] | None = None,
        snapshot_every_chunks: int | None = None,
        build_delays_seconds: Sequence[float] = BUILD_DELAYS_SECONDS,
        take_step: Callable[[Engine], list[EngineOutput]] = plain_step,
        wait: Callable[[float], bool] = wait,
    ) -> None:
        """See `Worker`. `wait`: waits so many seconds, and returns True to give up building. Raises what
        `build_engine` raises."""
        self.book = VideoBook(on_event, self.cancel_if_known)
        self._num_rebuilds, self._reason = 0, ""
        self._build_engine, self._delays, self._wait = build_engine, build_delays_seconds, wait
        self._snapshot_every, self._step_of = snapshot_every_chunks, take_step
        self._to_rebase: set[str] = set()
        self._engine: Engine | None = build_engine()
        self.checkpoints = None if checkpoints is None else checkpoints(self.engine)

    @property
    def engine(self) -> Engine:
        """The present engine. Raises WorkerError when there is none."""
        if self._engine is None:
            raise WorkerError(f"the worker has no engine any more: {self._reason or 'it was closed'}")
        return self._engine

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return self.engine.has_work

    def is_behind(self, id: str) -> bool:
        """Whether frames of this video are being made again."""
        return id in self.book.records and self.book.records[id].is_behind

    def step(self) -> None:
        """One step of the engine; tells what came of it. Raises WorkerError when the engine cannot be built again."""
        if (broken := _error_of(self._take_step) or _error_of(self._settle)) is not None:
            self.book.blame(self.engine.latest_batch)
            self._rebuild(broken)

    def do(self, verb: Callable[[], R]) -> R:
        """Carries out a verb; returns its result and raises its errors. An error that breaks the engine is raised once
        another engine has been built."""
        broken: Exception | None = None
        try:
            result = verb()
        except Exception as error:
            if not breaks_engine(error):
                raise
            broken = presentable(error)
        if broken is not None:
            self._rebuild(broken)
            raise broken
        if (broken := _error_of(self._settle)) is not None:
            self._rebuild(broken)
        return result

    def rebase(self, *ids: str) -> None:
        """These videos get a new base (recovery.py) before the present verb or step is over."""
        self._to_rebase.update(ids)

    def cancel_if_known(self, id: str) -> None:
        """Drops a video from the engine, if it is there."""
        with suppress(ConfigError):
            self.engine.cancel(id)

    def snapshot(self, id: str) -> JobSnapshot:
        """Where a video is, once all frames that it has have been given out. Raises ConfigError for unknown ids."""
        snapshot = self.engine.checkpoint(id)
        if snapshot.num_output_frames != self.book.records[id].frames_made:
            self.step()
            snapshot = self.engine.checkpoint(id)
        return snapshot

    def stats(self, state: str) -> WorkerStats:
        """The numbers of this moment, for a worker in that state."""
        queue = self.book.queue.durations()
        if self._engine is None:
            return WorkerStats(state, self._reason, self._num_rebuilds, videos=self.book.statuses, queue=queue)
        return WorkerStats(
            state=state,
            reason=self._reason,
            num_rebuilds=self._num_rebuilds,
            pool=pool_stats(self._engine, self.book.statuses),
            videos=self.book.statuses,
            engine=self._engine.stats(),
            token_seconds=self._engine.pace.token_seconds,
            cache=cache_info(self._engine),
            queue=queue,
        )

    def close(self) -> None:
        """Drops all videos; nobody is told."""
        engine, self._engine = self._engine, None
        if engine is not None:
            with suppress(Exception):  # it may be broken
                engine.close()

    # ------------------------------------------------------------------ parts of a step

    def _take_step(self) -> None:
        self.engine.one_at_a_time = self.book.has_suspects
        outputs = self._step_of(self.engine)
        for output in outputs:
            if isinstance(output, RequestFailure) and is_lost_device(output.error):
                raise output.error  # no single video is at fault, and none is safe
        self.rebase(*self.book.begin_forks(self.engine.videos, outputs))
        for output in outputs:
            self.book.take(output)
            record = self.book.records.get(output.request_id)
            if record and self._snapshot_every and record.chunks_since_base >= self._snapshot_every:
                self.rebase(output.request_id)

    def _settle(self) -> None:
        """After the engine has done something: tells new states, asks for what had to wait, takes snapshots."""
        self.rebase(*self.book.begin_forks(self.engine.videos))
        self.book.compare(self.engine.videos)
        records = self.book.records
        again = [status for status in self.book.statuses if status.id in records and records[status.id].is_given_again]
        for status in again:
            self._give_rest(status, records[status.id])
        if again:
            self.book.compare(self.engine.videos)
        self._to_rebase &= self.book.records.keys()
        for id in sorted(self._to_rebase):
            try:
                self._rebase(id, self.book.records[id])
            except Exception as error:
                if breaks_engine(error):
                    raise
                logger.warning("video %s could not be copied: %s; its older copy stays", id, described(error))
                self._to_rebase.discard(id)

    def _rebase(self, id: str, record: VideoRecord) -> None:
        try:
            snapshot = self.engine.checkpoint(id)
        except StateError:  # a fork that has not begun
            self._to_rebase.discard(id)
            return
        if record.base is None:
            record.begin(snapshot.num_output_frames)
        if snapshot.num_output_frames == record.frames_made:  # else the next step gives out what is missing
            record.rebase(snapshot)
            self.book.forget_fork(id)
            self._to_rebase.discard(id)

    # ------------------------------------------------------------------ another engine

    def _rebuild(self, error: Exception) -> None:
        """Puts another engine in the place of the broken one, with the same videos. Raises WorkerError."""
        broken: Exception | None = error
        for _ in range(MOST_REBUILDS_IN_A_ROW):
            assert broken is not None
            self._reason = described(broken)
            self._num_rebuilds += 1
            logger.error("the engine broke and is built again: %s", self._reason)
            self.close()
            self._engine = build_again(self._build_engine, self._reason, self._delays, self._wait)
            broken = _error_of(self._go_on)
            if broken is None:
                return
        self.close()
        raise WorkerError(f"{MOST_REBUILDS_IN_A_ROW} engines broke in a row; the latest with {self._reason}")

    def _go_on(self) -> None:
        """Gives all videos to the new engine. Raises what breaks it, too."""
        self.book.end_breakers(self._reason)
        self.book.tell(RebuiltEvent(self._reason))
        for id, record in list(self.book.records.items()):
            self._give(id, record)
        self.book.end_orphans()
        self._settle()

    def _give(self, id: str, record: VideoRecord) -> None:
        try:
            record.restore(self.engine, id, self.checkpoints)
        except Exception as error:
            self._end_or_break(id, record, error)

    def _give_rest(self, status: VideoStatus, record: VideoRecord) -> None:
        """Tells the new engine what else was asked of a video, when it is far enough for that."""
        try:
            if status.state not in (WAITING, PAUSED):
                record.ask(self.engine, status.id)
            if record.is_behind:
                return
            record.is_given_again = False
            if record.is_paused:
                self.engine.pause(status.id)
            if record.frames_played is not None:
                with suppress(ConfigError):  # it has not begun
                    self.engine.report_played(status.id, record.frames_played)
        except Exception as error:
            self._end_or_break(status.id, record, error)

    def _end_or_break(self, id: str, record: VideoRecord, error: Exception) -> None:
        if breaks_engine(error):
            record.num_breaks += 1
            raise error
        self.book.end(id, error)


def _error_of(action: Callable[[], None]) -> Exception | None:
    """What an action raises that should raise nothing. Raises WorkerError, after which there is no other engine.

    It is returned without its traceback, which would keep the broken engine's memory while another one is built.
    """
    try:
        action()
    except WorkerError:
        raise
    except Exception as error:
        logger.debug("where the engine broke", exc_info=True)
        return presentable(error)
    return None
