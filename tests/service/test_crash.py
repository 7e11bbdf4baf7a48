"""A service that is killed at random moments, again and again, keeps every promise: see crashing.py."""

from __future__ import annotations

import multiprocessing
import random

import pytest

from tests.service.crashing import CRASHED, work
from tests.service.listener import wait_until
from tests.service.promises import Promises
from tests.service.services import Service

NUM_CRASHES = 4
"""Of one folder, one after the other."""
MOST_MOMENTS = 250


@pytest.fixture(scope="module")
def processes():
    """Children of a process that has imported everything and has no threads."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.service.crashing"])
    return context


@pytest.mark.parametrize("seed", range(6))
def test_every_promise_is_kept(processes, tmp_path, seed):
    moments = random.Random(seed)
    data, log = tmp_path / "data", tmp_path / "log"
    codes = []
    for crash in range(NUM_CRASHES):
        process = processes.Process(target=work, args=(data, log, 100 * seed + crash, moments.randrange(MOST_MOMENTS)))
        process.start()
        process.join(60)
        codes.append(process.exitcode)
    assert set(codes) <= {CRASHED, 0} and CRASHED in codes
    promises = Promises(log)
    service = Service(data)
    try:
        wait_until(lambda: all(it.state in ("completed", "failed") for it in service.sessions.list(100).records))
        promises.check_all(service, data)
        wait_until(lambda: not service.sessions.stats().videos)
    finally:
        service.close()
