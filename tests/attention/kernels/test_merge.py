"""Correction and merge of a dense partial in one pass, against correction/formula.py and attention/partial.py."""

from __future__ import annotations

import pytest
import torch

from pagedvid.attention.kernels.merge import corrected_merge, merge
from pagedvid.correction.formula import QuantError
from tests.attention.kernels import reference
from tests.attention.kernels.scenes import DEVICE


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), device="cpu").to(DEVICE)


def partials() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Total and partial of 20 queries of 6 heads; row 5 of both is empty."""
    total, partial = ((randn(20, 6, 32, seed=i), randn(6, 20, seed=i + 2).T) for i in range(2))
    for lse, row in ((total[1], 3), (partial[1], 4), (total[1], 5), (partial[1], 5)):
        lse[row] = -torch.inf
    return [total, partial]


def check(got: tuple[torch.Tensor, torch.Tensor], expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    for tensor, value in zip(got, expected, strict=True):
        torch.testing.assert_close(tensor, value, rtol=1e-5, atol=1e-5)
    assert (got[1][5] == -torch.inf).all() and (got[0][5] == 0).all()


@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("has_alpha", [True, False])
@pytest.mark.parametrize("kind", ["even", "hot channel", "some lose variance"])
def test_equals_bias_and_merge(kind: str, has_alpha: bool, rotates: bool) -> None:
    total, partial = partials()
    q, scale = randn(20, 6, 32, seed=4), 0.18  # one block of rows: the same channels are hot in both
    square_step_size = randn(2, 32, seed=5).square()
    if kind == "hot channel":
        square_step_size[1, 3] = 900.0
    if kind == "some lose variance":
        square_step_size = 0.6 * randn(2, 32, seed=5)
    error = QuantError(square_step_size, False, None, rotates, torch.tensor([0.5, 1.2]) if has_alpha else None)
    expected = reference.corrected_merge(total, partial, q, scale, error)
    uncorrected = reference.corrected_merge(total, partial, q, scale, None)
    assert float((expected[1] - uncorrected[1]).nan_to_num().abs().max()) > 1e-2
    got = (total[0].clone(), total[1].clone())
    corrected_merge(got, partial, q, scale, error)
    check(got, expected)


def test_without_correction() -> None:
    total, partial = partials()
    got = (total[0].clone(), total[1].clone())
    merge(got, partial)
    check(got, reference.corrected_merge(total, partial, partial[0], 1.0, None))
