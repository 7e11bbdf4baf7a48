"""Orders of many threads: each is carried out once, or fails."""

from __future__ import annotations

import threading

import pytest

from pagedvid.errors import WorkerError
from pagedvid.service.inbox import Inbox


def all_ready(order) -> bool:
    return True


def test_orders_come_in_order():
    inbox: Inbox[list] = Inbox()
    futures = [inbox.send(lambda target, number=number: target.append(number) or number) for number in range(5)]
    made: list[int] = []
    for order in inbox.take(all_ready, waits=False):
        order.carry_out(made)
        assert not order.future.done()
        order.answer()
    assert made == [future.result(0) for future in futures] == list(range(5))
    assert inbox.take(all_ready, waits=False) == []


def test_orders_that_are_not_ready_keep_their_turn():
    inbox: Inbox[None] = Inbox()
    for id in ("a", None, "b", "a"):
        inbox.send(lambda target: None, of_place=id)
    assert [order.of_place for order in inbox.take(lambda order: order.of_place != "a", waits=False)] == [None, "b"]
    inbox.send(lambda target: None, of_place="c")
    assert [order.of_place for order in inbox.take(all_ready, waits=False)] == ["a", "a", "c"]


def test_cancelled_orders_are_left_out():
    inbox: Inbox[None] = Inbox()
    inbox.send(lambda target: None).cancel()
    kept = inbox.send(lambda target: None)
    (order,) = inbox.take(all_ready, waits=False)
    assert order.future is kept
    order.carry_out(None)
    assert not kept.cancel()


def test_waking():
    inbox: Inbox[None] = Inbox()
    taken: list[object] = []
    thread = threading.Thread(target=lambda: taken.append(inbox.take(all_ready, waits=True)))
    thread.start()
    inbox.wake()
    thread.join(10)
    assert taken == [[]]


def test_closing_does_not_take_a_wake_from_whoever_is_about_to_wait():
    inbox: Inbox[None] = Inbox()
    inbox.wake()
    inbox.close("the end")
    thread = threading.Thread(target=lambda: inbox.take(all_ready, waits=True), daemon=True)
    thread.start()
    thread.join(10)
    assert not thread.is_alive()


def test_a_closed_inbox_fails_what_it_has_and_what_comes():
    inbox: Inbox[None] = Inbox()
    early, held = inbox.send(lambda target: None), inbox.send(lambda target: None, of_place="a")
    inbox.take(lambda order: order.of_place is None, waits=False)
    waiting = inbox.send(lambda target: None)
    inbox.close("it is late")
    inbox.close("the second reason is not told")
    for future in (held, waiting, inbox.send(lambda target: None)):
        with pytest.raises(WorkerError, match="it is late"):
            future.result(0)
    assert not early.done()


def test_an_order_that_is_put_back_comes_again_and_can_be_cancelled_until_then():
    inbox: Inbox[None] = Inbox()
    future = inbox.send(lambda target: None)
    inbox.put_back(*inbox.take(all_ready, waits=False))
    (order,) = inbox.take(all_ready, waits=False)
    assert order.future is future and future.cancel()
    order.carry_out(None)
    order.answer()
    assert future.cancelled()
