"""The published quantizers against their papers: bits, grids, and the data they are good or bad at."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peers.quant_videogen import k_means, quant_videogen
from peers.turboquant import turboquant
from peers.uniform import kivi_keys, kivi_values, quarot, rtn


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def relative(got: Tensor, exact: Tensor) -> float:
    return float((got - exact).norm() / exact.norm())


def test_bits_are_those_of_the_papers():
    x = randn(2, 512, 128)
    assert rtn(x, 2, 32).bits == 2.75
    assert rtn(x, 2, 128).bits == 2 + 24 / 128
    assert kivi_keys(x, 2, 32).bits == 3.0
    assert kivi_values(x, 2, 64).bits == 2.5
    assert quarot(x, 4, 64).bits == 4.375
    assert turboquant(x, 3).bits == 3.125
    assert quant_videogen(x, 1, 64, "ternary", 16).bits == 2 + 8 / 64 + 8 / 128 + 16 * 16 / 512
    assert quant_videogen(x, 4, 16, "asymmetric", 16).bits == 2 + 16 / 16 + 4 * (8 / 128 + 16 * 16 / 512)


@pytest.mark.parametrize("bits", [2, 4])
def test_rtn_keeps_every_value_within_half_a_step_size_of_its_group(bits):
    x = randn(2, 50, 64)
    stored = rtn(x, bits, 32)
    step_size = (x.unflatten(-1, (2, 32)).amax(-1) - x.unflatten(-1, (2, 32)).amin(-1)) / (2**bits - 1)
    missed = (stored.values_HnD - x).abs().unflatten(-1, (2, 32))
    assert bool((missed <= step_size[..., None] * 0.501 + 0.01).all())
    expected = step_size.square().repeat_interleave(32, dim=-1)
    torch.testing.assert_close(stored.square_step_size_HnD, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize("num_tokens", [31, 64, 100])
def test_kivi_keys_round_every_channel_of_every_group_on_its_own(num_tokens):
    x = randn(1, num_tokens, 8) * torch.tensor([1.0, 100.0] * 4)
    stored = kivi_keys(x, 2, 32)
    assert relative(stored.values_HnD[..., 0::2], x[..., 0::2]) < 0.4
    changed = x.clone()
    changed[:, -1] *= 3
    last_group = (num_tokens - 1) // 32 * 32
    again = kivi_keys(changed, 2, 32).values_HnD
    assert torch.equal(again[:, :last_group], stored.values_HnD[:, :last_group])


def test_rotation_helps_against_outlier_channels_and_lloyd_max_helps_against_wide_grids():
    x = randn(1, 400, 64)
    x[..., 5] *= 20
    plain, rotated = (relative(quantize(x, 2, 64).values_HnD, x) for quantize in (rtn, quarot))
    assert rotated < 0.9 * plain
    x = randn(1, 400, 64)
    assert relative(turboquant(x, 2).values_HnD, x) < 0.9 * relative(rtn(x, 2, 64).values_HnD, x)


def test_turboquant_reaches_the_distortion_of_its_levels_on_anything_spread():
    """Lloyd-Max of a Gaussian: 0.1175 at 2 bits, 0.03454 at 3 (Max 1960)."""
    x = randn(1, 2000, 128)
    for bits, distortion in ((2, 0.1175), (3, 0.03454)):
        assert relative(turboquant(x, bits).values_HnD, x) ** 2 == pytest.approx(distortion, rel=0.05)


def test_k_means_ends_where_tokens_are_nearest_and_centroids_are_means():
    x = randn(2, 300, 16)
    centroids, ids = k_means(x, 8)
    assert torch.equal(torch.cdist(x, centroids).argmin(-1), ids)
    for head in range(2):
        for cluster in range(8):
            mean = x[head, ids[head] == cluster].mean(0)
            torch.testing.assert_close(centroids[head, cluster], mean, atol=1e-5, rtol=1e-5)


def test_ternary_shrinks_where_four_levels_do_not_and_stages_help():
    x = randn(1, 600, 64)
    ternary, asymmetric, pro = (
        relative(quant_videogen(x, stages, block, grid, 16).values_HnD, x)
        for stages, block, grid in ((1, 64, "ternary"), (1, 64, "asymmetric"), (4, 16, "ternary"))
    )
    assert asymmetric < 0.8 * ternary and pro < 0.8 * ternary


def test_redundant_tokens_cost_quant_videogen_little():
    x = randn(1, 16, 64).repeat(1, 32, 1) + 0.01 * randn(1, 512, 64, seed=1)
    assert relative(quant_videogen(x, 1, 64, "ternary", 256).values_HnD, x) < 0.02
    assert relative(rtn(x, 2, 64).values_HnD, x) > 0.2


def test_an_unknown_grid_is_refused():
    with pytest.raises(ValueError, match="grid is 'binary'; allowed are 'ternary' and 'asymmetric'"):
        quant_videogen(randn(1, 64, 64), 1, 64, "binary", 4)
