"""Correction and merge of a dense partial in one pass, against quant/correction.py and attention/partial.py."""

from __future__ import annotations

import pytest
import torch

from pagedvid.attention.kernels import reference
from pagedvid.attention.kernels.merge import corrected_merge
from pagedvid.attention.kernels.work import Noise
from tests.attention.kernels.scenes import Scene


@pytest.mark.parametrize("codec", ["int2", "int4-s8", "int2-pair", "bf16"])
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize(("large_channel", "variance"), [(1.0, False), (30.0, False), (1.0, True)])
def test_equals_bias_and_merge(codec: str, pairs: bool, large_channel: float, variance: bool) -> None:
    scene = Scene((codec, codec), 32, num_kv_heads=2, large_channel=large_channel)
    segment = scene.add(300, variance=variance and codec != "bf16")
    q, scale = scene.randn(20, 6, 32), 0.18  # one block of rows: the same channels are hot in both
    total, partial = ((scene.randn(20, 6, 32), scene.randn(6, 20).T) for _ in range(2))
    for lse, row in ((total[1], 3), (partial[1], 4), (total[1], 5), (partial[1], 5)):
        lse[row] = -torch.inf
    expected = reference.corrected_merge(
        scene.page, codec, scene.records, total, partial, q, segment, scale, pairs=pairs
    )
    got = (total[0].clone(), total[1].clone())
    noise = Noise("variance" if segment.variance is not None else "steps", pairs, segment.alpha, segment.variance)
    corrected_merge(got, partial, q, scene.records, scene.layouts[0], segment.keys_HP, 300, scale, noise)
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(got[1], expected[1], rtol=1e-5, atol=1e-5)
    assert (got[1][5] == -torch.inf).all() and (got[0][5] == 0).all()
