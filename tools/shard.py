"""A pytest plugin for machines without pytest-xdist: several processes each run another share of the tests.

SHARD=2/8 is the third of eight shares. Neighbours, which take similarly long, go to different shares. Every result is
one line, written at once, so that the processes can share a log: run with `-p shard -p no:terminal`.
"""

from __future__ import annotations

import os
from typing import Any


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Keeps the tests of this share."""
    number, count = (int(part) for part in os.environ["SHARD"].split("/"))
    items[:] = items[number::count]


def pytest_runtest_logreport(report: Any) -> None:
    """Writes how a test ended, and of a failure why."""
    if report.when == "call" or report.outcome != "passed":
        _write(f"{report.outcome:8}{report.duration:7.1f} s  {report.nodeid}", report)


def pytest_collectreport(report: Any) -> None:
    """Writes what could not be collected."""
    if report.failed:
        _write(f"not collected  {report.nodeid}", report)


def _write(line: str, report: Any) -> None:
    reason = f"{report.longreprtext}\n" if report.failed else ""
    os.write(1, f"{line}\n{reason}".encode(errors="replace"))
