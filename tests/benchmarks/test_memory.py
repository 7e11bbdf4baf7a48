"""The byte counter of the benchmarks, against calls whose peaks are known."""

from __future__ import annotations

import torch

MEGA = 10**6
SLACK = 10**4


def test_the_result_is_not_extra() -> None:
    from memory import extra_bytes

    x = torch.zeros(MEGA)
    assert extra_bytes(lambda: x + 1) < SLACK


def test_temporaries_are_counted_while_they_live() -> None:
    from memory import extra_bytes

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
    from memory import peak_resident_bytes, resident_bytes

    before = peak_resident_bytes()
    assert 0 < resident_bytes() <= before
    touched = torch.ones(max(before - resident_bytes(), 0) // 4 + 16 * MEGA)
    assert peak_resident_bytes() > before
    del touched
