"""Rounds run every case; bytes are counted right for calls whose peaks are known."""

from __future__ import annotations

import mmap

import torch

from lib.measuring import extra_bytes, interleaved, median_ratio, peak_resident_bytes, resident_bytes

MEGA = 10**6
SLACK = 10**4


def test_every_round_runs_every_case() -> None:
    order: list[str] = []

    def note(name: str) -> float:
        order.append(name)
        return float(len(order))

    results = interleaved({"a": lambda: note("a"), "b": lambda: note("b")}, 3)
    assert order == ["a", "b"] * 3
    assert results == {"a": [1, 3, 5], "b": [2, 4, 6]}
    assert median_ratio(results["b"], results["a"]) == 4 / 3


def test_the_result_is_not_extra() -> None:
    x = torch.zeros(MEGA)
    assert extra_bytes(lambda: x + 1) < SLACK


def test_temporaries_are_counted_while_they_live() -> None:
    x = torch.zeros(MEGA)

    def two_at_once() -> torch.Tensor:
        double = x * 2
        return (double + 1).sum() + double

    def one_after_the_other() -> torch.Tensor:
        total = (x * 2).sum()
        return total + (x * 3).sum()

    assert 8 * MEGA <= extra_bytes(two_at_once) < 8 * MEGA + SLACK
    assert 4 * MEGA <= extra_bytes(one_after_the_other) < 4 * MEGA + SLACK


def test_process_peak_is_at_least_what_is_resident_and_grows() -> None:
    before = peak_resident_bytes()
    assert 0 < resident_bytes() <= before
    # A mapping of its own: an allocation may be served from memory that was freed earlier and is still resident.
    with mmap.mmap(-1, before - resident_bytes() + 64 * MEGA) as mapping:
        for page in range(0, len(mapping), mmap.PAGESIZE):
            mapping[page] = 1
        assert peak_resident_bytes() > before
