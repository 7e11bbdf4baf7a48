"""Step sizes in a page: their bytes, and that no stored step size is below the one asked for."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.codecs.channel.codec import StepSizeFormat
from pagedvid.codecs.packing import short_step_sizes
from tests.codecs.page_reader import read_step_sizes

FORMATS = [StepSizeFormat(by_pair, is_short) for by_pair in (False, True) for is_short in (False, True)]
LARGEST = 131008 / 3
"""Step size of a range from the least to the greatest fp16 number in 2 bits."""


@pytest.mark.parametrize("format_", FORMATS, ids=str)
@pytest.mark.parametrize("head_dim", [2, 6, 64])
def test_step_sizes_take_whole_rows_and_are_where_the_docstring_says(head_dim, format_):
    stored = format_.encode(torch.rand(3, 5, head_dim, generator=torch.Generator().manual_seed(0)))
    assert stored.dtype == torch.uint8
    assert stored.shape == (3, 5, head_dim * (1 if format_.by_pair or format_.is_short else 2))
    if format_.by_pair and format_.is_short:
        assert not stored[..., head_dim // 2 :].any()
    expected = read_step_sizes(stored.numpy(), format_.by_pair, format_.is_short)
    np.testing.assert_allclose(format_.decode(stored).double().numpy(), expected, rtol=1e-7)


@given(st.sampled_from(FORMATS), st.lists(st.floats(0, 43670, width=32), min_size=2, max_size=2))
def test_a_stored_step_size_is_the_next_one_up(format_, wanted):
    wanted = torch.tensor(wanted)
    stored = format_.decode(format_.encode(wanted)).float()
    least = wanted.max().expand(2) if format_.by_pair else wanted
    assert (stored >= least).all()
    assert torch.equal(stored == 0, least == 0)
    if format_.is_short:
        most = (least * 2 ** (1 / 6)).clamp(min=2 ** (-159 / 6))
    else:
        most = least * (1 + 2**-10) + 2.0**-24  # below 2^-14, fp16 numbers are 2^-24 apart
    assert (stored <= most * 1.000001).all()


def test_every_short_step_size_is_stored_as_itself():
    format_, all_step_sizes = StepSizeFormat(is_short=True), short_step_sizes(torch.device("cpu"))
    assert format_.encode(all_step_sizes).tolist() == list(range(256))
    assert float(all_step_sizes[160]) == 1.0 and float(all_step_sizes[166]) == 2.0 and float(all_step_sizes[0]) == 0.0
    assert float(all_step_sizes[-1]) > LARGEST
    assert float(all_step_sizes[1]) < 2.0**-24  # the least fp16 number above 0
