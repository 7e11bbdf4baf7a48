"""Queries, keys and values put where attention reads them, against rotating every token by itself."""

from __future__ import annotations

import pytest
import torch

from pagedvid.errors import ConfigError
from pagedvid.rotary.tables import arrange, rotate, to_half_layout
from tests.rotary.arrangements import Arrangement


@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("layout", ["half", "interleaved"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("num_runs", [1, 3])
def test_equals_rotating_in_float32(num_runs, dtype, layout, rotated):
    """Bitwise, so that a key is the same whether it is arranged or rotated alone."""
    step = Arrangement.draw(num_runs, 37, (6, 2), 32, dtype)
    q, k, v = step.outputs()
    arrange(step.q, step.k, step.v, step.starts, 37, layout, step.angles if rotated else None, q, k, v)
    cos, sin = (step.runs(table).unsqueeze(2) for table in step.angles)
    for x, out in ((step.q, q), (step.k, k)):
        expected = to_half_layout(step.runs(x), layout)
        assert torch.equal(out, rotate(expected.float(), cos, sin).to(dtype) if rotated else expected)
    assert torch.equal(v, step.runs(step.v))


def test_queries_and_values_may_be_left_out():
    step = Arrangement.draw(2, 5, (2, 1), 32, torch.float32)
    (_, k, _), (_, expected, v) = step.outputs(), step.outputs()
    arrange(None, step.k, None, step.starts, 5, "half", step.angles, None, k, None)
    arrange(None, step.k, step.v, step.starts, 5, "half", step.angles, None, expected, v)
    assert torch.equal(k, expected)


def test_outputs_of_another_dtype_are_rounded_once():
    step = Arrangement.draw(2, 5, (2, 1), 32, torch.bfloat16)
    wide, narrow = step.outputs(torch.float32), step.outputs()
    for outs in (wide, narrow):
        arrange(step.q, step.k, step.v, step.starts, 5, "interleaved", step.angles, *outs)
    assert all(torch.equal(x.bfloat16(), y) for x, y in zip(wide, narrow, strict=True))


def test_an_unknown_layout_is_refused():
    step = Arrangement.draw(1, 5, (2, 1), 32, torch.float32)
    with pytest.raises(ConfigError, match="unknown rotary layout 'thirds'; allowed are half, interleaved"):
        arrange(step.q, step.k, step.v, step.starts, 5, "thirds", step.angles, *step.outputs())
