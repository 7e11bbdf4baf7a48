"""Limits by hand, and the designs one after another."""

from __future__ import annotations

import math

import pytest

from scaling.limits import (
    AS_BUILT,
    ENCODED_BY_REPLICAS,
    WRITTEN_BY_REPLICAS,
    Resource,
    Viewing,
    designs,
    first_full,
    num_services,
)
from tests.benchmarks.scaling.costs import COSTS


def by_name(resources: list[Resource]) -> dict[str, float]:
    return {it.name: it.per_stream for it in resources}


def test_a_stream_by_hand() -> None:
    found = {name: by_name(it) for name, it in designs(COSTS, Viewing(2.0, viewers=3.0), 1e9).items()}
    assert found[AS_BUILT] == {
        "recorder's thread": 2 * 107_002,
        "Python, one core": pytest.approx(2 * (1003 + 2000 + 3 * 60 + 3 * 4000) + 200),
        "network in": 28_000_000,
        "network out": 2 * 4 * 400_000,
    }
    assert found[ENCODED_BY_REPLICAS]["recorder's thread"] == 2 * 7002
    assert found[ENCODED_BY_REPLICAS]["network in"] == 800_000
    assert found[WRITTEN_BY_REPLICAS] == {
        "recorder's thread": 2 * 3002,
        "Python, one core": 2 * 1503 + 200,
        "network in": 0,
        "network out": 0,
    }


def test_what_is_full_first() -> None:
    resources = [Resource("a", 2.0, 100.0), Resource("b", 1.0, 10.0), Resource("nothing", 0.0, 1.0)]
    assert first_full(resources).name == "b" and first_full(resources).streams == 10
    assert resources[2].streams == math.inf
    assert resources[0].load(75) == 1.5
    assert num_services(resources, 70) == 10 and num_services(resources, 71) == 11


def test_each_design_goes_further() -> None:
    found = designs(COSTS, Viewing(4 / 3, viewers=1.0), 3e9)
    limits = [first_full(found[name]).streams for name in (AS_BUILT, ENCODED_BY_REPLICAS, WRITTEN_BY_REPLICAS)]
    assert limits == sorted(limits) and limits[0] < limits[1]
