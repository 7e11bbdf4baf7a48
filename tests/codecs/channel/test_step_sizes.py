"""Steps in a page: their bytes, and that no stored step is below the one asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.codecs.channel.codec import StepSizeFormat
from pagedvid.codecs.channel.step_sizes import short_step_sizes
from tests.codecs.page_reader import read_step_sizes

FORMATS = [StepSizeFormat(by_pair, is_short) for by_pair in (False, True) for is_short in (False, True)]
LARGEST = 131008 / 3
"""From the least to the greatest fp16 number, in 2 bits."""


@pytest.mark.parametrize("steps", FORMATS, ids=str)
@pytest.mark.parametrize("head_dim", [2, 6, 64])
def test_steps_take_whole_rows_and_lie_where_the_docstring_says(head_dim, steps):
    stored = steps.encode(torch.rand(3, 5, head_dim, generator=torch.Generator().manual_seed(0)))
    assert stored.dtype == torch.uint8
    assert stored.shape == (3, 5, head_dim * (1 if steps.by_pair or steps.is_short else 2))
    if steps.by_pair and steps.is_short:
        assert not stored[..., head_dim // 2 :].any()
    expected = read_step_sizes(stored.numpy(), steps.by_pair, steps.is_short)
    np.testing.assert_allclose(steps.decode(stored).double().numpy(), expected, rtol=1e-7)


@given(st.sampled_from(FORMATS), st.lists(st.floats(0, 43670, width=32), min_size=2, max_size=2))
def test_a_stored_step_is_the_next_one_up(steps, wanted):
    wanted = torch.tensor(wanted)
    stored = steps.decode(steps.encode(wanted)).float()
    least = wanted.max().expand(2) if steps.by_pair else wanted
    assert (stored >= least).all()
    assert torch.equal(stored == 0, least == 0)
    if steps.is_short:
        most = (least * 2 ** (1 / 6)).clamp(min=2 ** (-159 / 6))
    else:
        most = least * (1 + 2**-10) + 2.0**-24  # below 2^-14, fp16 numbers are 2^-24 apart
    assert (stored <= most * 1.000001).all()


def test_every_short_step_is_stored_as_itself():
    steps, all_steps = StepSizeFormat(is_short=True), short_step_sizes(torch.device("cpu"))
    assert steps.encode(all_steps).tolist() == list(range(256))
    assert float(all_steps[160]) == 1.0 and float(all_steps[166]) == 2.0 and float(all_steps[0]) == 0.0
    assert float(all_steps[-1]) > LARGEST
    assert float(all_steps[1]) < 2.0**-24  # the least fp16 number above 0
