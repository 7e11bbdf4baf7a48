"""Which tokens each head keeps, on scores and curves made by hand, and against slow searches."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch

from lib.samples import draw_family
from peers.dummy_heads import needs, whole_heads
from peers.eviction import AdaKV, HeadCounts, attention_paid, even_counts
from peers.lu_kv import chunk_scores, hull_gains, largest_utilities, loss_curves, mean_utilities, spend


def test_head_counts_keep_the_best_of_each_head() -> None:
    scores_Hn = torch.tensor([[0.1, 0.4, 0.3, 0.2], [0.9, 0.0, 0.8, 0.7]])
    kept = HeadCounts(((4, 4), (1, 3))).keep(1, scores_Hn)
    assert kept.tolist() == [[False, True, False, False], [True, False, True, True]]
    assert even_counts(2, 3, 5).counts_LH == ((5, 5, 5), (5, 5, 5))


def test_adakv_takes_the_best_of_a_layer_after_what_every_head_is_sure_of() -> None:
    scores_Hn = torch.tensor([[0.9, 0.8, 0.7, 0.6, 0.5], [0.1, 0.2, 0.3, 0.1, 0.05]])
    assert AdaKV(2).keep(3, scores_Hn).tolist() == [
        [True, True, True, False, False],
        [False, False, True, False, False],
    ]
    assert AdaKV(2, safeguard=1.0).keep(0, scores_Hn).sum(-1).tolist() == [2, 2]
    assert AdaKV(3, safeguard=0.4).keep(0, scores_Hn).sum(-1).tolist() == [5, 1]
    assert AdaKV(5).keep(0, scores_Hn).all()


def test_attention_paid_is_a_mean_of_softmax_over_what_is_seen() -> None:
    q, keys, others = (torch.randn(2, n, 8, generator=torch.Generator().manual_seed(n)) for n in (3, 4, 5))
    seen = torch.tensor([[True] * 5, [True, False, True, False, False]])
    paid = attention_paid(q, keys, others, seen)
    for head in range(2):
        visible = torch.cat([keys[head], others[head][seen[head]]]).double()
        expected = (q[head].double() @ visible.T / 8**0.5).softmax(-1)[:, :4].mean(0)
        torch.testing.assert_close(paid[head].double(), expected, rtol=1e-5, atol=1e-7)


def test_hull_gains_are_the_largest_convex_curve_below() -> None:
    curve = np.array([10.0, 9.0, 3.0, 3.0, 2.0, 0.0, 0.0])
    expected = [
        min(
            curve[a] + (curve[b] - curve[a]) * (m - a) / max(b - a, 1)
            for a, b in product(range(m + 1), range(m, len(curve)))
        )
        for m in range(len(curve))
    ]
    gains = hull_gains(curve)
    np.testing.assert_allclose(curve[0] - np.concatenate([[0], gains.cumsum()]), expected)
    assert (np.diff(gains) <= 1e-12).all()


def test_lu_kv_spends_tokens_where_they_are_worth_most() -> None:
    curves_LHm = np.array([[[8.0, 4, 2, 1, 0], [1.0, 0.5, 0.2, 0.1, 0]], [[6.0, 3, 1.5, 1, 0.5], [0.0, 0, 0, 0, 0]]])
    counts_LH = np.array(spend(curves_LHm, 2).counts_LH)
    assert counts_LH.sum() == 8 and counts_LH.min() >= 1
    least = min(
        sum(curves_LHm[divmod(i, 2)][count] for i, count in enumerate(counts))
        for counts in product(range(1, 5), repeat=4)
        if sum(counts) == 8
    )
    assert sum(curves_LHm[divmod(i, 2)][count] for i, count in enumerate(counts_LH.flat)) == pytest.approx(least)


@pytest.mark.parametrize("scorer", ["own", "ahead"])
def test_loss_curves_are_the_utility_of_what_a_scorer_drops(scorer: str) -> None:
    sample = draw_family("low rank", 0, head_dim=8, num_chunks=2, num_frames=1, frame_tokens=6)
    (curves_Hm,) = loss_curves([sample], scorer, mean_utilities)
    utilities_CHn = mean_utilities(sample)
    for head, kept in product(range(2), range(7)):
        lost = []
        for chunk in range(2):
            worst = chunk_scores(sample, chunk, scorer)[head].argsort()[: 6 - kept]
            lost.append(float(utilities_CHn[chunk, head, worst].sum()))
        assert curves_Hm[head, kept] == pytest.approx(np.mean(lost), abs=1e-5)


def test_utility_is_attention_times_the_norm_of_the_value() -> None:
    sample = draw_family("full rank, no redundancy", 1, head_dim=8, num_chunks=2, num_frames=1, frame_tokens=5)
    keys = torch.cat([sample.rotated(sample.k_CHTD[c], c) for c in range(2)], dim=1)
    keys = torch.cat([keys, sample.rotated(sample.current_k_LHTD[0], -1)], dim=1).double()
    weights = (sample.rotated(sample.q_LHTD[0], -1).double() @ keys.mT / 8**0.5).softmax(-1)
    norm = sample.v_CHTD.double().square().sum(-1).sqrt()
    for utilities, paid in ((mean_utilities, weights[1, :, 5 + 3].mean()), (largest_utilities, weights[1, :, 8].max())):
        expected = float(paid * norm[1, 1, 3] / norm.mean())
        assert float(utilities(sample)[1, 1, 3]) == pytest.approx(expected, rel=1e-5)


def test_dummy_heads_keep_nothing() -> None:
    assert whole_heads(np.array([[0.1, 0.5], [0.3, 0.2]]), 10, 4).counts_LH == ((0, 10), (6, 0))
    needs_LH = needs([draw_family("fast scene", seed, head_dim=8, num_frames=1, frame_tokens=6) for seed in range(2)])
    assert needs_LH.shape == (1, 2) and (needs_LH.sum() >= 1 - 1e-6)
