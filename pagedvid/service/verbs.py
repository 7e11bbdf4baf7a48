"""What may be asked of the videos of a supervised engine. For its thread.

The verbs are those of `Engine`, with its errors. Each also keeps what is needed to make the video again, so that what
was asked survives an engine that breaks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pagedvid.engine.failures import presentable
from pagedvid.engine.requests import Continuation, VideoRequest, VideoStatus
from pagedvid.engine.states import WAITING
from pagedvid.errors import ConfigError, StateError
from pagedvid.output.given_frames import with_given_frames
from pagedvid.service.rebuilding import breaks_engine
from pagedvid.service.recovery import (
    Change,
    Checkpoint,
    Extension,
    NewPrompt,
    VideoRecord,
    make,
    required,
)
from pagedvid.service.supervised_engine import SupervisedEngine


class Verbs:
    """The verbs of one supervised engine.

    While frames of a video are being made again (`SupervisedEngine.is_behind`), it pauses later, and what would change
    its course raises StateError.
    """

    def __init__(self, supervised: SupervisedEngine) -> None:
        self._supervised, self._book = supervised, supervised.book

    def submit(self, request: VideoRequest, frames_given: int = 0) -> None:
        """See `Engine.submit`, and `Worker.submit` for `frames_given`."""

        def submit() -> None:
            engine = self._supervised.engine
            engine.submit(with_given_frames(request, engine))
            record = VideoRecord(request, frames_given=frames_given, is_given_again=frames_given > 0)
            self._book.records[request.id] = record

        self._supervised.do(submit)

    def refusals(self, requests: Sequence[VideoRequest]) -> dict[str, Exception]:
        """See `Worker.refusals`."""

        def check() -> dict[str, Exception]:
            engine, refused = self._supervised.engine, dict[str, Exception]()
            for request in requests:
                try:
                    engine.check(with_given_frames(request, engine))
                except Exception as error:
                    if breaks_engine(error):
                        raise
                    refused[request.id] = presentable(error)
            return refused

        return self._supervised.do(check)

    def cancel(self, id: str) -> None:
        """See `Engine.cancel`."""

        def cancel() -> None:
            if self._book.is_expected(id):  # an engine that was built again may not know it yet
                self._supervised.cancel_if_known(id)
            else:
                self._supervised.engine.cancel(id)
            self._book.forget(id)

        self._supervised.do(cancel)

    def pause(self, id: str) -> None:
        """See `Engine.pause`."""

        def pause() -> None:
            if not self._supervised.is_behind(id):
                self._supervised.engine.pause(id)
            self._book.records[id].is_paused = True

        self._supervised.do(pause)

    def resume(self, id: str) -> None:
        """See `Engine.resume`."""

        def resume() -> None:
            if not self._supervised.is_behind(id):
                self._supervised.engine.resume(id)
            self._book.records[id].is_paused = False

        self._supervised.do(resume)

    def prompt(self, id: str, prompt: str, recache: bool) -> None:
        """See `Engine.prompt`."""
        self._supervised.do(lambda: self._change(id, NewPrompt(prompt, recache)))

    def extend(self, id: str, num_frames: int) -> None:
        """See `Engine.extend`."""
        self._supervised.do(lambda: self._change(id, Extension(num_frames)))

    def fork(self, id: str, continuations: Sequence[Continuation]) -> frozenset[str]:
        """See `Engine.fork`, and `Worker.fork` for what it returns."""

        def fork() -> frozenset[str]:
            self._require_place(id)
            self._supervised.engine.fork(id, continuations)
            records, ids = self._book.records, {continuation.id for continuation in continuations}
            records[id].changes += continuations
            records.update({fork_id: VideoRecord(None) for fork_id in ids})
            self._supervised.rebase(id, *ids)
            return frozenset(it.id for it in self._supervised.engine.videos() if it.id in ids and _is_separate(it))

        return self._supervised.do(fork)

    def report_played(self, id: str, num_frames: int) -> None:
        """See `Engine.report_played`."""

        def report() -> None:
            if not self._supervised.is_behind(id):
                self._supervised.engine.report_played(id, num_frames)
            self._book.records[id].frames_played = num_frames

        self._supervised.do(report)

    def checkpoint(self, id: str, path: Path) -> Checkpoint:
        """Writes a video to a file, its base from now on. Raises ConfigError, and what writing raises."""

        def checkpoint() -> Checkpoint:
            files = required(self._supervised.checkpoints)
            snapshot = self._supervised.snapshot(id)
            files.write(snapshot, path)
            self._book.records[id].rebase(snapshot, path)
            return Checkpoint.of(snapshot)

        return self._supervised.do(checkpoint)

    def restore(
        self, path: Path, changes: Sequence[Change] = (), frames_given: int = 0, expected_id: str | None = None
    ) -> str:
        """Queues a video that goes on where its file says, and returns its id; see `Worker.restore`. Raises what
        reading the file and `Engine.restore` raise."""

        def restore() -> str:
            snapshot = required(self._supervised.checkpoints).read(path)
            id = snapshot.request.id
            if expected_id not in (None, id):
                raise ConfigError(
                    f"{path} is a checkpoint of {id!r}, not of {expected_id!r}; give the one of that video"
                )
            record = VideoRecord(snapshot, list(changes), frames_given=frames_given)
            record.restore(self._supervised.engine, id, None)
            record.begin(snapshot.num_output_frames)
            record.base = path
            self._book.records[id] = record
            return id

        return self._supervised.do(restore)

    def _change(self, id: str, change: Change) -> None:
        self._require_place(id)
        make(change, self._supervised.engine, id)
        self._book.records[id].changes.append(change)
        self._supervised.rebase(id)

    def _require_place(self, id: str) -> None:
        if self._supervised.is_behind(id):
            raise StateError(
                f"frames of video {id!r} are being made again after its engine broke; change its course when that is "
                "done"
            )


def _is_separate(fork: VideoStatus) -> bool:
    """Whether a fork waits for its own turn: its source has not begun, so that they share nothing."""
    return fork.state == WAITING and fork.source_id is None
