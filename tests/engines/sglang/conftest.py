"""SGLang is made importable before its tests run, and not when they are collected."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def engine():
    from tests.engines.sglang.on_cpu import one_process

    with one_process():
        yield
