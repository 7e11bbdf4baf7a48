"""What callers on any thread ask of one thread: calls that wait, each with a future."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Any, Generic, TypeVar

from pagedvid.errors import WorkerError

Target = TypeVar("Target")
R = TypeVar("R")


@dataclass(eq=False)
class Order(Generic[Target]):
    """A call that somebody waits for."""

    call: Callable[[Target], Any]
    of_place: str | None = None
    """The video whose course it changes; see `Verbs`."""
    future: Future[Any] = field(default_factory=Future)
    _result: Any = None
    _error: Exception | None = None

    def carry_out(self, target: Target) -> None:
        """Makes the call unless its caller has cancelled it; nobody is told yet."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self._result = self.call(target)
        except Exception as error:
            self._error = error

    def answer(self) -> None:
        """Tells the result, if the call was made."""
        if not self.future.running():
            return
        if self._error is None:
            self.future.set_result(self._result)
        else:
            self.future.set_exception(self._error)


class Inbox(Generic[Target]):
    """A queue of orders that can be closed. Every order that comes in is carried out or fails."""

    def __init__(self) -> None:
        self._orders: SimpleQueue[Order[Target] | None] = SimpleQueue()
        self._later: list[Order[Target]] = []
        """Not ready when they were taken."""
        self._lock = Lock()
        self._reason: str | None = None
        """Why it is closed."""

    def send(self, call: Callable[[Target], R], of_place: str | None = None) -> Future[R]:
        """Adds an order; its future fails at once with WorkerError when the inbox is closed."""
        order = Order(call, of_place)
        with self._lock:
            if self._reason is None:
                self._orders.put(order)
            else:
                order.future.set_exception(WorkerError(self._reason))
        return order.future

    def wake(self) -> None:
        """Makes `take` return."""
        self._orders.put(None)

    def take(self, is_ready: Callable[[Order[Target]], bool], *, waits: bool) -> list[Order[Target]]:
        """The orders that are ready, oldest first; the others are asked for again next time.

        `waits`: for a new order, or for `wake`. Orders that their caller has cancelled are left out.
        """
        new = [self._orders.get()] if waits else []
        with self._lock:
            orders = [*self._later, *(order for order in [*new, *self._drain()] if order is not None)]
            self._later = [order for order in orders if not is_ready(order)]
            ready = [order for order in orders if order not in self._later]
        return [order for order in ready if not order.future.cancelled()]

    def put_back(self, order: Order[Target]) -> None:
        """An order that was taken is not ready any more; it is asked for again next time."""
        with self._lock:
            self._later.append(order)

    def close(self, reason: str) -> None:
        """Fails all orders that were not taken, and those that are still to come."""
        with self._lock:
            self._reason = self._reason or reason
            orders, self._later = [*self._later, *self._drain()], []
            self._orders.put(None)  # a `wake` may be among those, and `take` may only be about to wait for it
        for order in orders:
            if order is not None and order.future.set_running_or_notify_cancel():
                order.future.set_exception(WorkerError(self._reason))

    def _drain(self) -> list[Order[Target] | None]:
        drained: list[Order[Target] | None] = []
        with suppress(Empty):
            while True:
                drained.append(self._orders.get_nowait())
        return drained
