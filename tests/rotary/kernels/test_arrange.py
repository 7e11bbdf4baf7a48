"""The kernel that puts queries, keys and values where attention reads them, against its reference."""

from __future__ import annotations

import pytest
import torch

from pagedvid.rotary import tables
from pagedvid.rotary.kernels import arrange
from tests.rotary.arrangements import Arrangement

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
"""Where there is a GPU the kernels run on it, otherwise in the interpreter (tests/conftest.py)."""


@pytest.mark.parametrize("is_rotated", [True, False])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize(
    ("num_runs", "num_tokens", "heads", "head_dim", "dtype"),
    [
        (1, 1, (1, 1), 32, torch.float32),
        (3, 33, (6, 2), 64, torch.bfloat16),
        (2, 32, (5, 5), 128, torch.float32),
        (1, 70, (9, 3), 32, torch.bfloat16),
    ],
)
def test_equals_the_reference(num_runs, num_tokens, heads, head_dim, dtype, layout, is_rotated):
    step = Arrangement.draw(num_runs, num_tokens, heads, head_dim, dtype, DEVICE)
    angles = step.angles if is_rotated else None
    found, expected = step.outputs(torch.float32), step.outputs(torch.float32)
    for function, outs in ((arrange, found), (tables.arrange, expected)):
        function(step.q, step.k, step.v, step.starts, num_tokens, layout, angles, *outs)
    for out, value in zip(found, expected, strict=True):
        torch.testing.assert_close(out, value, rtol=0, atol=1e-6 if is_rotated else 0)


def test_results_in_the_dtype_of_the_model():
    step = Arrangement.draw(2, 5, (2, 1), 32, torch.bfloat16, DEVICE)
    found, expected = step.outputs(), step.outputs()
    for function, outs in ((arrange, found), (tables.arrange, expected)):
        function(step.q, step.k, step.v, step.starts, 5, "half", step.angles, *outs)
    for out, value in zip(found, expected, strict=True):
        # The interpreter cuts bits off instead of rounding: up to one unit of the last place.
        torch.testing.assert_close(out.float(), value.float(), rtol=2**-7, atol=1e-6)


def test_queries_and_values_may_be_left_out():
    step = Arrangement.draw(2, 5, (2, 1), 32, torch.float32, DEVICE)
    (_, k, _), (_, expected, _) = step.outputs(), step.outputs()
    for function, out in ((arrange, k), (tables.arrange, expected)):
        function(None, step.k, None, step.starts, 5, "half", step.angles, None, out, None)
    torch.testing.assert_close(k, expected, rtol=0, atol=1e-6)
