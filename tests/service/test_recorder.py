"""The recorder's thread: in order, and nobody waits for it for ever."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

from pagedvid.service.events import StateEvent
from pagedvid.service.recorder import Recorder
from tests.service.listener import wait_until


def test_what_is_asked_for_while_it_ends_comes_after_all_that_was_told():
    seen: list[str] = []
    recorder = Recorder(lambda event: seen.append(event.id), lambda id: None)
    recorder.start()
    goes_on = threading.Event()
    with ThreadPoolExecutor(3) as threads:
        threads.submit(recorder.call, goes_on.wait)
        recorder.tell(StateEvent("told", "running"))
        stopped = threads.submit(recorder.stop)
        wait_until(lambda: recorder._jobs.qsize() == 2)  # what was told, and the end
        asked = threads.submit(recorder.call, lambda: seen.append("asked"))
        goes_on.set()
        try:
            asked.result(10)
            stopped.result(10)
        finally:
            recorder._jobs.put(None)
    assert seen == ["told", "asked"]
    recorder.tell(StateEvent("told too late", "running"))
    recorder.call(lambda: seen.append("asked later"))
    assert seen == ["told", "asked", "asked later"]
