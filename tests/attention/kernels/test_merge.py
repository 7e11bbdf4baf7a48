"""The kernel that merges all partials of a layer, against its reference and float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.attention import merge as reference
from pagedvid.attention.kernels.merge import BLOCK_ROWS, merge
from tests.attention.partials import EXACT_FROM, Case

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where there is a GPU the kernels run on it, otherwise in the interpreter (tests/conftest.py)."""
AWKWARD = [
    ((1, 1, 1, 1, 1, 32), torch.float32),
    ((2, 3, BLOCK_ROWS + 1, 2, 1, 64), torch.bfloat16),
    ((1, 6, 2 * BLOCK_ROWS + 3, 1, 1, 128), torch.bfloat16),
    ((2, 2, BLOCK_ROWS - 3, 2, 3, 32), torch.float32),
    ((1, 13, 5, 1, 3, 128), torch.float32),
    ((3, 1, BLOCK_ROWS, 1, 1, 64), torch.bfloat16),
]
"""(E, J, T, H, G, D), dtype of queries and partials."""


def run(case: Case, dtype: torch.dtype = torch.float32, *, corrected: bool = True) -> Tensor:
    out = torch.full((*case.own[0].shape[:-1], 2 * case.own[0].shape[-1]), torch.nan, dtype=dtype, device=DEVICE)
    written, beside = out.chunk(2, dim=-1)
    bias = case.bias if corrected else None
    merge(case.own, [case.others], written, bias=bias, q_EVTHD=case.q_EVTHD, scale=case.scale)
    assert beside.isnan().all()
    return written


@pytest.mark.parametrize("hot", [0, 1, 12])
@pytest.mark.parametrize(("shape", "dtype"), AWKWARD)
def test_equals_float64_and_the_reference(shape, dtype, hot):
    head_major = shape[2] % 2 == 1
    case = Case.draw(
        shape, dtype=dtype, hot=hot, pairs="mixed", num_variants=2, head_major=head_major, alpha=hot != 1, device=DEVICE
    )
    got = run(case)
    torch.testing.assert_close(got.double(), case.expected(case.exact_shift(EXACT_FROM)), rtol=1e-4, atol=2e-5)
    expected = torch.empty_like(got)
    reference.merge(case.own, [case.others], expected, bias=case.bias, q_EVTHD=case.q_EVTHD, scale=case.scale)
    torch.testing.assert_close(got, expected, rtol=0, atol=5e-3 if hot else 1e-3)  # 1 % of b


@pytest.mark.parametrize(("shape", "dtype"), AWKWARD[:4])
def test_the_lse_of_a_result_that_is_a_partial_itself(shape, dtype):
    case = Case.draw(shape, dtype=dtype, device=DEVICE)
    got, expected = (torch.full(case.own[1].shape, torch.nan, device=DEVICE) for _ in range(2))
    given = {"bias": case.bias, "q_EVTHD": case.q_EVTHD, "scale": case.scale}
    merge(case.own, [case.others], torch.empty_like(case.own[0]), **given, lse_ETH=got)
    reference.merge(case.own, [case.others], torch.empty_like(case.own[0]), **given, lse_ETH=expected)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize(("shape", "dtype"), AWKWARD[:4])
def test_without_a_correction(shape, dtype):
    case = Case.draw(shape, dtype=dtype, device=DEVICE)
    got = run(case, corrected=False)
    torch.testing.assert_close(got.double(), case.expected(None), rtol=1e-5, atol=1e-6)
    assert shape[1] == 1 or float((got - run(case)).abs().max()) > 1e-2


def test_a_bfloat16_result_is_the_rounded_sum():
    case = Case.draw((1, 2, 7, 2, 1, 64), dtype=torch.bfloat16, device=DEVICE)
    # The interpreter cuts bits off instead of rounding: up to one unit of the last place.
    torch.testing.assert_close(run(case, torch.bfloat16).float(), run(case), rtol=2**-7, atol=0)


@pytest.mark.parametrize("pairs", ["all", "none"])
def test_components_along_axes(pairs):
    """Queries of another dtype than the partials, as a codec with axes of its own needs them."""
    case = Case.draw((1, 2, 7, 2, 1, 64), dtype=torch.bfloat16, pairs=pairs, device=DEVICE)
    case.q_EVTHD = case.q_EVTHD.float() * 1.01
    torch.testing.assert_close(run(case).double(), case.expected(case.exact_shift(EXACT_FROM)), rtol=1e-4, atol=2e-5)


def test_extreme_step_sizes_and_lse():
    case = Case.draw((1, 3, 9, 1, 1, 32), hot=2, device=DEVICE)
    case.bias.square_EJHD[0, 1] *= 50.0
    case.bias.square_EJHD[0, 2] *= -1.0
    case.others[1][0, 1] += 3e3
    case.own[1][0, 4] = 3e4
    expected = case.expected(case.exact_shift(EXACT_FROM))
    torch.testing.assert_close(run(case).double(), expected, rtol=1e-3, atol=1e-3)


def test_no_keys_are_no_weight():
    case = Case.draw((2, 3, 7, 2, 1, 32), device=DEVICE)
    case.own[1][:, 2] = case.own[1][:, 3] = -torch.inf
    case.others[1][:, 1] = case.others[1][:, :, 3] = -torch.inf
    got = run(case)
    assert (got[:, 3] == 0).all()  # nobody has keys
    rows = [0, 1, 2, 4, 5, 6]
    expected = case.expected(case.exact_shift(EXACT_FROM))
    torch.testing.assert_close(got[:, rows].double(), expected[:, rows], rtol=1e-4, atol=2e-5)
