"""One engine in several processes that share the heads of its cache: rank 0 leads, the others do what it does.

    rank 0      LeadingEngine.step, submit, ...    broadcasts the call, then makes it
    rank r      follow                             receives the call, makes it, and drops the result

Every rank has the whole model, so all of them come to the same decisions; the exchanges inside `attend` keep them in
step. With each call rank 0 sends the outcome of the one before, and a rank with another outcome stops. No decision may
depend on what only one rank knows: a leading engine has no live videos, because these follow its clock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from typing_extensions import override

from pagedvid.engine.engine import Engine
from pagedvid.engine.failures import described
from pagedvid.engine.requests import ChunkOutput, Continuation, EngineOutput, VideoRequest
from pagedvid.engine.snapshot import JobSnapshot
from pagedvid.errors import ConfigError, IntegrityError, PagedvidError, RankError

R = TypeVar("R")
Fate = tuple[Any, ...]
"""What came of a verb, as far as it is the same on all ranks."""


class Leader(Protocol):
    """How rank 0 reaches the others; distributed/control.py."""

    def tell(self, told: Any, /) -> None:
        """Sends `told` to all other ranks."""
        ...

    def end(self) -> None:
        """Tells the other ranks to stop."""
        ...


class Follower(Protocol):
    """How another rank receives what rank 0 sends."""

    @property
    def rank(self) -> int:
        """Of this process."""
        ...

    def hear(self) -> Any:
        """What rank 0 told next; None: stop."""
        ...


@dataclass(frozen=True)
class Order:
    """A verb of `Engine`, and what came of the one before."""

    verb: str
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    fate_before: Fate = ()


class LeadingEngine(Engine):
    """The engine of rank 0. Any error that is not about one video or request is a RankError: the ranks cannot go on."""

    def __init__(self, *arguments: Any, leader: Leader, **settings: Any) -> None:
        """As `Engine`."""
        super().__init__(*arguments, **settings)
        self._leader = leader
        self._fate: Fate = ()

    @override
    def step(self) -> list[EngineOutput]:
        return self._lead(super().step, Order("step", ()))

    @override
    def submit(self, request: VideoRequest) -> None:
        self._lead(super().submit, Order("submit", (_not_live(request),)))

    @override
    def check(self, request: VideoRequest) -> None:
        self._lead(super().check, Order("check", (_not_live(request),)))

    @override
    def restore(self, snapshot: JobSnapshot) -> None:
        image = None if snapshot.image is None else snapshot.image.without_objects()
        self._lead(super().restore, Order("restore", (replace(snapshot, image=image),)))

    @override
    def checkpoint(self, request_id: str) -> JobSnapshot:
        return self._lead(super().checkpoint, Order("checkpoint", (request_id,)))

    @override
    def cancel(self, request_id: str) -> None:
        self._lead(super().cancel, Order("cancel", (request_id,)))

    @override
    def pause(self, request_id: str) -> None:
        self._lead(super().pause, Order("pause", (request_id,)))

    @override
    def resume(self, request_id: str) -> None:
        self._lead(super().resume, Order("resume", (request_id,)))

    @override
    def prompt(self, request_id: str, prompt: str, *, recache: bool = False) -> None:
        self._lead(super().prompt, Order("prompt", (request_id, prompt), {"recache": recache}))

    @override
    def fork(self, request_id: str, continuations: Sequence[Continuation]) -> None:
        self._lead(super().fork, Order("fork", (request_id, continuations)))

    @override
    def extend(self, request_id: str, num_frames: int) -> None:
        self._lead(super().extend, Order("extend", (request_id, num_frames)))

    @override
    def close(self) -> None:
        """Cancels everything, and the others stop following."""
        super().close()
        self._leader.end()

    def _lead(self, carry_out: Callable[..., R], order: Order) -> R:
        try:
            self._leader.tell(Order(order.verb, order.arguments, order.options, self._fate))
            result = carry_out(*order.arguments, **order.options)
        except Exception as error:
            if not _is_of_all_ranks(error):
                raise RankError(f"rank 0 cannot go on: {described(error)}. All ranks must start again") from error
            self._fate = _fate_of(error)
            raise
        self._fate = _fate_of(result)
        return result


def follow(engine: Engine, follower: Follower) -> None:
    """Does what rank 0 does until rank 0 ends. Raises RankError when an outcome differs from rank 0's, and errors that
    rank 0 may not have met."""
    fate: Fate = ()
    while (order := follower.hear()) is not None:
        if order.fate_before != fate:
            raise RankError(
                f"rank {follower.rank} came to {fate!r}, rank 0 to {order.fate_before!r}; all ranks need the same "
                "versions, files and kind of device"
            )
        try:
            fate = _fate_of(getattr(engine, order.verb)(*order.arguments, **order.options))
        except PagedvidError as error:
            if not _is_of_all_ranks(error):
                raise
            fate = _fate_of(error)
    engine.close()


def _is_of_all_ranks(error: Exception) -> bool:
    """Whether the other ranks have met the same one: those that pagedvid raises for what was asked of it."""
    return isinstance(error, PagedvidError) and not isinstance(error, (IntegrityError, RankError))


def _fate_of(came: object) -> Fate:
    """Of a result or an error."""
    if isinstance(came, Exception):
        return (type(came).__name__,)
    if not isinstance(came, list):
        return ()
    return tuple(
        (type(output).__name__, output.request_id, output.chunk_index if isinstance(output, ChunkOutput) else None)
        for output in came
    )


def _not_live(request: VideoRequest) -> VideoRequest:
    """Raises ConfigError for a video with a viewer, whose clock the other ranks do not see."""
    if request.live_frames_per_second is not None:
        raise ConfigError(
            f"video {request.id!r} is live; several devices make videos together only where nobody plays them "
            "meanwhile: leave live_frames_per_second out"
        )
    return request
