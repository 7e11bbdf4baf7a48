"""A soak: random verbs, swaps, faults, restarts and clients of all kinds. Then: is anything left, is anything wrong?"""

from __future__ import annotations

import gc
import logging
import os
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median

from pagedvid.errors import PagedvidError
from tests.service.soak.catalogue import delete, quiet_run
from tests.service.soak.faults import Faults
from tests.service.soak.steady import Meddler, Onlooker
from tests.service.soak.toy_service import ToyService, disk_that_fills
from tests.service.soak.users import Shared, User, arm_faults

logger = logging.getLogger(__name__)

NUM_USERS = 3
RESTART_SECONDS = 15.0
"""Between two restarts, on average."""
SAMPLE_SECONDS = 0.5
IDLE_SECONDS = 30.0
MOST_GROWTH_BYTES = 24 * 2**20
KIB = 1024


@dataclass
class Report:
    """What a soak did and found."""

    seconds: float
    findings: list[str] = field(default_factory=list)
    calls: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)
    num_restarts: int = 0
    num_compared: int = 0
    """Videos that were compared with the quiet run."""
    most_swapped_bytes: int = 0
    resident_bytes: list[int] = field(default_factory=list)
    """Of the process, every half second or more."""


def soak(seconds: float, seed: int, folder: Path) -> Report:
    """Shakes a service for so long and returns what was found; an empty list of findings is what it is for."""
    report, faults = Report(seconds), Faults()
    entries = quiet_run(folder / "quiet")
    threads_before, files_before = set(threading.enumerate()), _num_open_files()
    service = ToyService(folder / "shaken", faults)
    service.start()
    shared = Shared(service, seconds)
    onlookers = [
        *(Onlooker(shared, entries, random.Random(f"{seed} onlooker {number}")) for number in range(2)),
        Meddler(shared, entries, random.Random(f"{seed} meddler")),
    ]
    users = [User(shared, random.Random(f"{seed} user {number}")) for number in range(NUM_USERS)]
    disturbing: list[Callable[[], None]] = [user.run for user in users]
    disturbing.append(lambda: arm_faults(shared, random.Random(f"{seed} faults")))
    with disk_that_fills(faults):
        disturbers, others = _start(shared, disturbing), _start(shared, [it.run for it in onlookers])
        _guard(shared, lambda: _restart_and_sample(shared, report, random.Random(f"{seed} restarts")))
        _join(shared, disturbers)
        faults.disarm()
        _guard(shared, partial(delete, service, *shared.ids()))  # paused ones would hold all pages for ever
        _join(shared, others)
    report.findings = shared.findings
    try:
        delete(service, *_all_ids(service))
        report.findings += _left_in_engine(service)
        service.close()
        report.findings += _left_on_disk(service.folder)
    except Exception as error:
        logger.exception("the service cannot be tidied up")
        report.findings.append(f"the service cannot be tidied up: {type(error).__name__}: {error}")
    report.findings += _left_in_process(threads_before, files_before)
    report.findings += _growth(report.resident_bytes)
    report.calls = dict(sorted(shared.calls.items()))
    report.faults = dict(sorted(faults.struck.items()))
    report.num_compared = sum(onlooker.num_compared for onlooker in onlookers)
    return report


def _guard(shared: Shared, task: Callable[[], None]) -> None:
    """Runs it; an error is a finding."""
    try:
        task()
    except Exception as error:
        logger.exception("a thread of the soak ended")
        shared.find(f"a thread of the soak ended with {type(error).__name__}: {error}")


def _start(shared: Shared, tasks: Sequence[Callable[[], None]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=_guard, args=[shared, task], daemon=True) for task in tasks]
    for thread in threads:
        thread.start()
    return threads


def _join(shared: Shared, threads: Sequence[threading.Thread]) -> None:
    for thread in threads:
        thread.join(5 * IDLE_SECONDS)
        if thread.is_alive():
            shared.find("a thread of the soak does not end")


def _restart_and_sample(shared: Shared, report: Report, randomness: random.Random) -> None:
    next_restart = time.monotonic() + randomness.uniform(0.2, 1.0) * RESTART_SECONDS
    while not shared.is_over:
        time.sleep(SAMPLE_SECONDS)
        report.resident_bytes.append(_resident_bytes())
        pool = shared.service.sessions.stats().pool
        if pool is not None:
            report.most_swapped_bytes = max(report.most_swapped_bytes, pool.swapped_bytes)
        if time.monotonic() > next_restart:
            shared.service.restart()
            report.num_restarts += 1
            next_restart = time.monotonic() + randomness.uniform(0.5, 1.5) * RESTART_SECONDS


# ---------------------------------------------------------------------- what is left


def _all_ids(service: ToyService) -> list[str]:
    ids: list[str] = []
    page = service.sessions.list(100)
    ids += [record.id for record in page.records]
    while page.has_more:
        page = service.sessions.list(100, ids[-1])
        ids += [record.id for record in page.records]
    return ids


def _left_in_engine(service: ToyService) -> list[str]:
    """Nothing may hold a page or a byte of host memory once every session is deleted."""
    deadline = time.monotonic() + IDLE_SECONDS
    while service.sessions.stats().videos and time.monotonic() < deadline:
        time.sleep(0.05)
    engine = service.engines[0]
    findings = [f"video {video.id} is left in the engine, {video.state}" for video in engine.videos()]
    left = {
        "streams": len(engine.cache.streams),
        "reserved pages": engine.cache.reserved_pages,
        "used pages": engine.cache.pool.num_used_pages,
        "bytes of host memory": engine.host_memory.used_bytes,
    }
    findings += [f"{number} {what} are left" for what, number in left.items() if number]
    try:
        engine.cache.check()
    except PagedvidError as error:
        findings.append(f"check() says: {error}")
    return findings


def _left_on_disk(folder: Path) -> list[str]:
    """Of a closed service without sessions."""
    findings = [f"{path.relative_to(folder)} is left" for path in folder.rglob("*") if not _belongs(path, folder)]
    with sqlite3.connect(folder / "pagedvid.sqlite") as database:
        tables = [row[0] for row in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            ((number,),) = database.execute(f"SELECT count(*) FROM {table}")
            if number and table not in ("settings", "sqlite_sequence"):
                findings.append(f"{number} rows are left in the table {table}")
    database.close()
    return findings


def _belongs(path: Path, folder: Path) -> bool:
    """The database, its lock, and the empty folder of the sessions."""
    return path.parent == folder and (path.is_file() or not any(path.iterdir()))


def _left_in_process(threads_before: set[threading.Thread], num_files_before: int) -> list[str]:
    threads = set(threading.enumerate()) - threads_before
    findings = [f"the thread {thread.name} still runs" for thread in threads]
    gc.collect()
    if (number := _num_open_files()) > num_files_before:
        findings.append(f"{number - num_files_before} more files are open than before")
    return findings


def _growth(resident_bytes: list[int]) -> list[str]:
    """Memory in the last quarter may not be far above that of the second."""
    quarter = len(resident_bytes) // 4
    if quarter == 0:
        return []
    growth = median(resident_bytes[-quarter:]) - median(resident_bytes[quarter : 2 * quarter])
    return [f"memory grew by {growth / 2**20:.0f} MiB"] if growth > MOST_GROWTH_BYTES else []


def _num_open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def _resident_bytes() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * KIB
