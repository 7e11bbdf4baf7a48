"""A `Worker` in another process, as its holder sees it: the same verbs, which return futures at once, and its events.

The process may end at any moment. Every future that waits then fails with WorkerError.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from typing_extensions import override

from pagedvid.cluster.library import ray_library
from pagedvid.engine.requests import Continuation, VideoRequest
from pagedvid.errors import WorkerError
from pagedvid.service.recovery import Change, Checkpoint
from pagedvid.service.stats import WorkerStats


class RemoteVerbs(ABC):
    """The verbs of a `Worker` in another process. Paths are those of its machine."""

    def submit(self, request: VideoRequest, *, frames_given: int = 0) -> Future[None]:
        """See `Worker.submit`."""
        return self._ask("submit", request, frames_given=frames_given)

    def refusals(self, requests: Sequence[VideoRequest]) -> Future[dict[str, Exception]]:
        """See `Worker.refusals`."""
        return self._ask("refusals", requests)

    def cancel(self, id: str) -> Future[None]:
        """See `Worker.cancel`."""
        return self._ask("cancel", id)

    def pause(self, id: str) -> Future[None]:
        """See `Worker.pause`."""
        return self._ask("pause", id)

    def resume(self, id: str) -> Future[None]:
        """See `Worker.resume`."""
        return self._ask("resume", id)

    def prompt(self, id: str, prompt: str, *, recache: bool = False) -> Future[None]:
        """See `Worker.prompt`."""
        return self._ask("prompt", id, prompt, recache=recache)

    def fork(self, id: str, continuations: Sequence[Continuation]) -> Future[frozenset[str]]:
        """See `Worker.fork`."""
        return self._ask("fork", id, continuations)

    def extend(self, id: str, num_frames: int) -> Future[None]:
        """See `Worker.extend`."""
        return self._ask("extend", id, num_frames)

    def report_played(self, id: str, num_frames: int) -> Future[None]:
        """See `Worker.report_played`."""
        return self._ask("report_played", id, num_frames)

    def checkpoint(self, id: str, path: Path) -> Future[Checkpoint]:
        """See `Worker.checkpoint`."""
        return self._ask("checkpoint", id, path)

    def restore(
        self, path: Path, changes: Sequence[Change] = (), *, frames_given: int = 0, id: str | None = None
    ) -> Future[str]:
        """See `Worker.restore`."""
        return self._ask("restore", path, changes, frames_given=frames_given, id=id)

    @abstractmethod
    def _ask(self, verb: str, *args: Any, **kwargs: Any) -> Future[Any]:
        """The result of a verb of that worker."""


class RemoteWorker(RemoteVerbs):
    """The holder's end of a `WorkerActor`. `Cluster.start_worker` makes one."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    # ------------------------------------------------------------------ life

    def start(self) -> Future[None]:
        """See `Worker.start`; waits for a free device first."""
        return _future(self._actor.start.remote())

    def events(self) -> Future[tuple[list[Any], WorkerStats]]:
        """The events since the last call, and the worker's numbers. Done within a moment, also when there are none."""
        return _future(self._actor.events.remote())

    def stop(self, checkpoint_folder: Path | None = None, *, seconds: float = 30.0) -> Future[dict[str, Path]]:
        """See `Worker.stop`. The process stays until `kill`, so that the last events can be asked for."""
        return _future(self._actor.stop.remote(checkpoint_folder, seconds))

    def kill(self) -> None:
        """Ends the process at once."""
        ray_library().kill(self._actor)

    @override
    def _ask(self, verb: str, *args: Any, **kwargs: Any) -> Future[Any]:
        return _future(self._actor.ask.remote(verb, *args, **kwargs))


def own_error(error: BaseException) -> BaseException:
    """An error as it was raised in the other process, or WorkerError when that process is gone."""
    exceptions = ray_library().exceptions
    if isinstance(error, exceptions.RayTaskError):
        return error.cause
    if isinstance(error, exceptions.RayError):
        return WorkerError(f"the worker's process has ended: {str(error).splitlines()[0]}")
    return error


def _future(ref: Any) -> Future[Any]:
    """A plain future for a result of Ray's, with errors of our own."""
    plain: Future[Any] = Future()

    def pass_on(done: Future[Any]) -> None:
        error = done.exception()
        if error is None:
            plain.set_result(done.result())
        else:
            plain.set_exception(own_error(error))

    ref.future().add_done_callback(pass_on)
    return plain
