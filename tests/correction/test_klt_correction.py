"""The effect of klt storage on log-mean-exp, against b = scale^2 / 2 * sum_c q_c^2 (Var k'_c - Var k_c), in float64, on
keys drawn from the calibration's own model: Gaussian coefficients of the tables' deviations.

Coarse codes and dropped coefficients lose variance, so that stored keys lose mass: b is negative.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.klt.blocks import cosine_transform, places_in_pages
from tests.codecs.klt.scenes import FRAME_TOKENS, HEAD_DIM, NUM_FRAMES, codec, decode, tables

NUM_TOKENS = 100_000
SCALE = HEAD_DIM**-0.5


def draw_keys(head: int) -> Tensor:
    """[NUM_TOKENS, D]."""
    model, num_blocks = tables("keys"), NUM_TOKENS // NUM_FRAMES
    normal = torch.randn(num_blocks, NUM_FRAMES * HEAD_DIM, generator=torch.Generator().manual_seed(0))
    drawn = (normal * model.deviation_hN[head]).unflatten(-1, (NUM_FRAMES, HEAD_DIM))
    tokens = (cosine_transform(NUM_FRAMES).T @ drawn).transpose(0, 1).flatten(0, 1)  # [F, b] of one huge page
    places = places_in_pages(model.layout, NUM_TOKENS, num_blocks, torch.device("cpu"))
    ordered = tokens if places is None else tokens[places]
    return ordered @ model.synthesis_hDD[head] + model.mean_hD[head]


def log_mean_exp(q_QD: Tensor, k_nD: Tensor) -> Tensor:
    return (q_QD.double() @ k_nD.double().T * SCALE).logsumexp(-1)


@pytest.mark.parametrize("name", ["klt0.5", "klt0.75", "klt1"])
@pytest.mark.parametrize("head", [0, 1])
def test_the_change_of_variance_predicts_the_shift(head, name):
    """Within 5e-4 of log Z and within a quarter. Shifts are small, -0.001 to -0.01; the rest is of higher order."""
    k = draw_keys(head)
    tried = codec(name, "keys", FRAME_TOKENS, (head,))
    stored = decode(tried, tried.encode(k[None]), NUM_TOKENS)[0]
    q = torch.randn(64, HEAD_DIM, generator=torch.Generator().manual_seed(1)).double()
    shift = float((log_mean_exp(q, stored) - log_mean_exp(q, k)).mean())
    change = stored.double().var(0) - k.double().var(0)
    b = float((SCALE**2 / 2 * q.square() @ change).mean())
    assert -0.02 < shift < 0
    assert abs(b - shift) < min(5e-4, abs(shift) / 4)
