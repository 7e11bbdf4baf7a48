"""Runs of pages: what the tolerance promises, for any b."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pagedvid.attention import page_runs as module
from pagedvid.attention.page_runs import TOLERANCE, cut_by_both, page_runs, runs_of_layers

PAGE_TOKENS = 8
biases = st.tuples(st.integers(1, 12), st.integers(1, 3)).flatmap(
    lambda shape: arrays(np.float32, shape, elements=st.floats(0, 0.5, width=32))
)


def pages_of(runs: tuple[int, ...]) -> list[slice]:
    """The pages of each run; all but the last run are whole pages."""
    ends = np.cumsum(runs)
    assert all(end % PAGE_TOKENS == 0 for end in ends[:-1])
    return [slice((end - run) // PAGE_TOKENS, -(-end // PAGE_TOKENS)) for run, end in zip(runs, ends, strict=True)]


@given(biases, st.integers(1, PAGE_TOKENS))
def test_b_of_a_run_is_that_of_its_pages_within_the_tolerance(bias_PH: np.ndarray, last_page_tokens: int) -> None:
    """In every head; and no run could be longer."""
    num_tokens = (len(bias_PH) - 1) * PAGE_TOKENS + last_page_tokens
    runs = page_runs(bias_PH, PAGE_TOKENS, num_tokens)
    assert sum(runs) == num_tokens
    tokens_P = np.full(len(bias_PH), PAGE_TOKENS)
    tokens_P[-1] = last_page_tokens
    for pages in pages_of(runs):
        bias_of_run_H = np.average(bias_PH[pages], axis=0, weights=tokens_P[pages])  # to second order
        assert np.abs(bias_PH[pages] - bias_of_run_H).max() <= TOLERANCE + 1e-6
        longer = bias_PH[pages.start : pages.stop + 1]
        assert len(longer) == pages.stop - pages.start or np.ptp(longer, axis=0).max() > TOLERANCE


@pytest.mark.parametrize(
    ("bias_of_pages", "expected"),
    [
        ([0.3], (5,)),
        ([0.3, 0.35, 0.31], (21,)),
        ([0.3, 0.3, 0.9, 0.9, 0.9], (16, 21)),
        ([0.3, 0.9, 0.3], (8, 8, 5)),
        ([0.0, 0.08, 0.16, 0.24], (16, 13)),  # each near the page before it, but not near the first
        ([0.3, 0.36, 0.24], (16, 5)),  # both near the first, but not near each other
    ],
)
def test_a_chunk_is_cut_where_b_changes(bias_of_pages: list[float], expected: tuple[int, ...]) -> None:
    bias_PH = np.array(bias_of_pages, dtype=np.float32)[:, None]
    num_tokens = (len(bias_PH) - 1) * PAGE_TOKENS + 5
    assert page_runs(bias_PH, PAGE_TOKENS, num_tokens) == expected
    steady = np.concatenate([bias_PH, np.full_like(bias_PH, 0.5)], axis=1)
    assert page_runs(steady, PAGE_TOKENS, num_tokens) == expected  # one head is enough


def test_layers_of_different_page_sizes_are_read_in_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    rng, waits = np.random.default_rng(0), []
    bias = {layer: rng.random((pages, 2), dtype=np.float32) for layer, pages in ((0, 4), (2, 2), (3, 4))}
    page_tokens = {0: 8, 2: 16, 3: 8}
    to_cpu = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: waits.append(0) or to_cpu(self))
    found = module.runs_of_layers([(layer, page_tokens[layer], torch.from_numpy(x)) for layer, x in bias.items()], 30)
    assert found == {layer: page_runs(x, page_tokens[layer], 30) for layer, x in bias.items()} and len(waits) == 1
    assert runs_of_layers([], 30) == {} and len(waits) == 1


def test_heads_with_pages_of_other_lengths_share_runs() -> None:
    late, early = torch.tensor([[0.0], [0.5]]), torch.tensor([[0.0], [0.5], [0.5], [0.5]])
    assert runs_of_layers([(1, 16, late), (1, 8, early), (2, 16, late)], 30) == {1: (8, 8, 14), 2: (16, 14)}
    assert runs_of_layers([(1, 16, torch.zeros(2, 3)), (1, 8, early)], 30) == {1: (8, 22)}
    assert cut_by_both((8, 22), (16, 14)) == (8, 8, 14)
