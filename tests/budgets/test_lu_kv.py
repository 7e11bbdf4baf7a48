"""The solver on LU-KV's own kind of curve: the score that a head loses with the tokens that it does not keep.

kvpress (0.5.5 was read) does not solve: its LU-KV press looks the share of tokens to discard up in a table that was
made elsewhere, and masks the tokens. So the allocation is compared with LU-KV's algorithm, written here from the
paper's description, and kvpress is asked whether its press, given a table made by `allocate`, keeps these tokens and
loses that score. Its AdaKV press does allocate: by the highest scores of a layer, LU-KV's answer where the scores are
the utilities.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from scipy.optimize import isotonic_regression

from pagedvid.budgets.solver import Choices, allocate
from tests.budgets.items import total_error

NUM_HEADS, NUM_TOKENS = 12, 40
KVPRESS_LAYERS, RATIOS = 3, 99


def utilities(seed: int, misjudged: float) -> np.ndarray:
    """[head, token], in the order in which a scorer discards them; it errs by so many nepers."""
    random = np.random.default_rng(seed)
    spread, level = random.uniform(0.5, 3, (NUM_HEADS, 1)), random.normal(size=(NUM_HEADS, 1))
    log_utility = level + spread * random.normal(size=(NUM_HEADS, NUM_TOKENS))
    order = np.argsort(log_utility + misjudged * random.normal(size=log_utility.shape), axis=1)
    return np.exp(np.take_along_axis(log_utility, order, axis=1))


def kept_tokens_of(utility: Sequence[float], least: int = 0) -> Choices:
    """A head may keep `least` tokens or more; number n keeps `least` + n. A token stands for a byte."""
    lost = np.concatenate([[0.0], np.cumsum(utility)])[::-1]
    return Choices(tuple(range(least, len(lost))), tuple(lost[least:].tolist()))


def lu_kv(utility_HT: np.ndarray) -> Iterator[tuple[list[int], bool]]:
    """The tokens that every head keeps after each discarded token, and whether all heads are at corners of their hulls.

    The hull of the accumulated loss has the slopes of the increasing sequence nearest to the utilities. A heap over
    heads gives the token whose loss adds least.
    """
    slopes_HT = [isotonic_regression(utility).x.tolist() for utility in utility_HT]
    kept = [len(slopes) for slopes in slopes_HT]
    heads = [(slopes[0], head) for head, slopes in enumerate(slopes_HT)]
    heapq.heapify(heads)
    while heads:
        slope, head = heapq.heappop(heads)
        kept[head] -= 1
        following = slopes_HT[head][NUM_TOKENS - kept[head] :]
        if following:
            heapq.heappush(heads, (following[0], head))
        yield list(kept), slope not in following


@pytest.mark.parametrize("seed", range(5))
def test_where_the_scorer_is_right_every_budget_is_spent_as_lu_kv_spends_it(seed):
    utility_HT = utilities(seed, misjudged=0)
    items = [kept_tokens_of(utility) for utility in utility_HT]
    for kept, _ in lu_kv(utility_HT):
        assert allocate(items, sum(kept)) == tuple(kept)


@pytest.mark.parametrize("seed", range(5))
def test_where_the_scorer_errs_corners_are_equal_and_nothing_between_is_worse(seed):
    utility_HT = utilities(seed, misjudged=1)
    items = [kept_tokens_of(utility) for utility in utility_HT]
    at_corners = 0
    for kept, corner in lu_kv(utility_HT):
        numbers = allocate(items, sum(kept))
        assert sum(numbers) <= sum(kept)
        assert total_error(items, numbers) <= total_error(items, kept) * (1 + 1e-12)
        if corner:
            assert numbers == tuple(kept)
            at_corners += 1
    assert 2 * NUM_HEADS < at_corners < NUM_HEADS * NUM_TOKENS


class Layer(torch.nn.Module):
    """As much of an attention layer as a press looks at."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer_idx, self.config = layer, torch.nn.Module()
        self.config._attn_implementation = "sdpa"
        self.masked_key_indices: tuple[torch.Tensor, ...] | None = None


def masked_tokens(press: object, layer: int) -> np.ndarray:
    """[head, token] whether the press masks it in a layer."""
    module, masked_HT = Layer(layer), np.zeros((NUM_HEADS // KVPRESS_LAYERS, NUM_TOKENS), bool)
    keys = torch.zeros(1, *masked_HT.shape, 8)
    press.compress(module, torch.zeros(1, NUM_TOKENS, 8), keys, keys, None, {})
    if module.masked_key_indices is not None:
        _, heads, tokens = module.masked_key_indices
        masked_HT[heads.numpy(), tokens.numpy()] = True
    return masked_HT


def scorer(utility_LHT: np.ndarray, compression_ratio: float = 0.0) -> object:
    """A press of kvpress whose scores are the utilities."""
    presses = pytest.importorskip("kvpress")

    class Utility(presses.ScorerPress):
        def score(self, module, hidden_states, keys, values, attentions, kwargs):
            return torch.tensor(utility_LHT[module.layer_idx])[None]

    return Utility(compression_ratio)


def test_kvpress_keeps_what_was_allocated():
    presses = pytest.importorskip("kvpress")
    utility_HT = utilities(0, misjudged=0)
    utility_LHT = utility_HT.reshape(KVPRESS_LAYERS, -1, NUM_TOKENS)
    items = [kept_tokens_of(utility, least=1) for utility in utility_HT]  # the press leaves every head a token
    budgets = [max(NUM_HEADS, round((1 - (i + 1) / 100) * utility_HT.size)) for i in range(RATIOS)]
    allocations = [allocate(items, budget) for budget in budgets]
    kept_RLH = 1 + np.array(allocations).reshape(RATIOS, KVPRESS_LAYERS, -1)
    for index in range(0, RATIOS, 7):
        press = presses.LUKVPress(scorer(utility_LHT), compression_ratio=(index + 1) / 100, sink=0, window=0)
        press._budget_curves = 1 - kept_RLH / NUM_TOKENS
        masked_LHT = np.stack([masked_tokens(press, layer) for layer in range(KVPRESS_LAYERS)])
        assert ((~masked_LHT).sum(2) == kept_RLH[index]).all()
        assert utility_LHT[masked_LHT].sum() == pytest.approx(total_error(items, allocations[index]), rel=1e-9)


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.8, 0.95])
def test_kvpress_allocates_the_same_by_the_highest_scores_of_a_layer(ratio):
    presses = pytest.importorskip("kvpress")
    utility_LHT = utilities(1, misjudged=0).reshape(KVPRESS_LAYERS, -1, NUM_TOKENS)
    press = presses.AdaKVPress(scorer(utility_LHT, ratio), alpha_safeguard=0)
    for layer, utility_HT in enumerate(utility_LHT):
        kept = (~masked_tokens(press, layer)).sum(1)
        items = [kept_tokens_of(utility) for utility in utility_HT]
        assert allocate(items, int(kept.sum())) == tuple(kept.tolist())
