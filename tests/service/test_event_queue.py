"""Events reach the other thread in order, and a full queue holds their sender up until it is told not to."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread

from pagedvid.service.event_queue import EventQueue
from pagedvid.service.events import StateEvent

WAIT_SECONDS = 20
EVENTS = [StateEvent(str(number), "running") for number in range(10)]


def sender(queue: EventQueue) -> tuple[Thread, Callable[[], int]]:
    """A thread that puts all events, and how many it has put."""
    put: list[StateEvent] = []

    def send() -> None:
        for event in EVENTS:
            queue.put(event)
            put.append(event)

    thread = Thread(target=send, daemon=True)
    thread.start()
    return thread, lambda: len(put)


def test_events_come_in_order_and_are_held_up() -> None:
    queue = EventQueue(3)
    thread, num_put = sender(queue)
    for number, event in enumerate(EVENTS):
        assert queue.take(WAIT_SECONDS) is event
        assert num_put() <= number + 4
    thread.join(WAIT_SECONDS)
    assert num_put() == 10


def test_nothing_comes() -> None:
    assert EventQueue(3).take(0.01) is None


def test_a_sender_that_waits_is_let_in() -> None:
    queue = EventQueue(3)
    thread, num_put = sender(queue)
    thread.join(0.1)
    assert thread.is_alive() and num_put() == 3
    queue.let_all_in()
    thread.join(WAIT_SECONDS)
    assert [queue.take(0) for _ in range(11)] == [*EVENTS, None]
