"""Every codec's variance change, put into b = scale^2 / 2 * sum_c q_c^2 (Var k'_c - Var k_c), against the shift of
log-mean-exp that its own keys suffer, in float64, over many tokens and queries."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.quant.hadamard import HadamardCodec
from pagedvid.quant.klt import KltCodec
from pagedvid.quant.token import TokenCodec
from tests.quant.klt_scenes import HEAD_DIM, codec

NUM_TOKENS = 100_000
SCALE = HEAD_DIM**-0.5


def shift_of_log_mean_exp(q_QD: Tensor, k_nD: Tensor, stored_nD: Tensor) -> Tensor:
    """[Q], float64; equals the shift of log Z."""
    scores = [q_QD.double() @ k.double().T * SCALE for k in (k_nD, stored_nD)]
    return scores[1].logsumexp(-1) - scores[0].logsumexp(-1)


def queries() -> Tensor:
    return torch.randn(64, HEAD_DIM, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("rotated", [False, True])
def test_uniform_rounding_gains_mass_as_foretold(rotated, bits):
    tokens = TokenCodec(HEAD_DIM, bits, HEAD_DIM)
    tried = HadamardCodec(tokens) if rotated else tokens
    k = torch.randn(1, NUM_TOKENS, HEAD_DIM, generator=torch.Generator().manual_seed(0))
    records = tried.encode(k)
    out = torch.empty(1, records.shape[1] * tokens.page_tokens, HEAD_DIM)
    # Large keys have large steps and, under strong queries, large weights; that is beyond a mean over tokens.
    q = 0.5 * queries()
    stored = tried.decode(records, NUM_TOKENS, out)[0]
    true = float(shift_of_log_mean_exp(q, k[0], stored).mean())
    actual = float((SCALE**2 / 2 * q.square() @ (stored.var(0) - k[0].var(0))).mean())
    b = float((SCALE**2 / 2 * q.square() @ tried.variance_change(records, NUM_TOKENS)[0]).mean())
    assert true == pytest.approx(actual, rel=0.1)
    # A grid between a token's own extremes is not independent of the token: variance grows by more than step^2 / 12.
    assert 1.0 < true / b < 1.35


def test_the_rotated_query_meets_the_noise_of_rotated_keys():
    """Steps that differ by direction, seen along these directions or spread over channels: alike on average."""
    tried = HadamardCodec(TokenCodec(HEAD_DIM, 2, 4))
    k = torch.randn(1, 500, HEAD_DIM, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, HEAD_DIM + 1)
    records = tried.encode(k)
    along = (queries() @ tried.axes()).square() @ tried.directional_variance_change(records, 500)[0]
    spread = queries().square() @ tried.variance_change(records, 500)[0]
    assert float(along.mean()) == pytest.approx(float(spread.mean()), rel=0.1)


@pytest.mark.parametrize("page_rows", [6, 12, 18])
def test_transform_coding_loses_mass_as_foretold(page_rows):
    """Keys drawn as the calibration expects them: Gaussian coefficients of the tables' deviations."""
    tried = codec("keys", page_blocks=10, page_rows=page_rows)
    tables = tried.tables.heads(slice(0, 1))
    tried = KltCodec(tables)
    num_frames, num_blocks = tables.layout.num_frames, NUM_TOKENS // tables.layout.num_frames
    noise = torch.randn(1, num_blocks, num_frames * HEAD_DIM, generator=torch.Generator().manual_seed(0))
    drawn = torch.zeros_like(noise).scatter_(
        -1, tables.order_hN[:, None].expand(noise.shape), noise * tables.deviation_hN
    )
    y = (tables.cosines_FF.T @ drawn.unflatten(-1, (num_frames, -1))).flatten(1, 2)
    ordered = y[:, tables.layout.places(NUM_TOKENS)]
    k = ordered @ tables.synthesis_hDD + tables.mean_hD[:, None]
    records = tried.encode(k)
    stored = tried.decode(records, NUM_TOKENS, torch.empty(1, records.shape[1] * tables.page_tokens, HEAD_DIM))
    true = shift_of_log_mean_exp(queries(), k[0], stored[0])
    b = SCALE**2 / 2 * queries().square() @ tried.variance_change(records, NUM_TOKENS)[0]
    assert float(true.mean()) < 0
    assert float(b.mean() / true.mean()) == pytest.approx(1.0, abs=0.15)
