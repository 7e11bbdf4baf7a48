"""Some heads of an axis: indexed as by a list, and a view where that is possible."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.codecs.assignment import are_neighbours
from pagedvid.codecs.heads import index_among, index_of, query_heads

some_heads = st.sets(st.integers(0, 5), min_size=1).map(lambda heads: tuple(sorted(heads)))


@given(some_heads)
def test_an_index_stands_for_the_heads(heads):
    x, index = torch.rand(4, 6, 3), index_of(heads, torch.device("cpu"))
    assert torch.equal(x[:, index], x[:, list(heads)])
    is_view = heads == tuple(range(heads[0], heads[-1] + 1))
    same_memory = x[:, index].untyped_storage().data_ptr() == x.untyped_storage().data_ptr()
    assert are_neighbours(heads) == is_view == isinstance(index, slice) == same_memory
    assert index_of(heads, torch.device("cpu")) is index


@given(some_heads, some_heads)
def test_an_index_among_others(heads, more):
    others = tuple(sorted({*heads, *more}))
    assert torch.tensor(others)[index_among(heads, others, torch.device("cpu"))].tolist() == list(heads)


@pytest.mark.parametrize(("heads", "group", "expected"), [((0, 2), 1, (0, 2)), ((1, 2, 4), 2, (2, 3, 4, 5, 8, 9))])
def test_query_heads(heads, group, expected):
    assert query_heads(heads, group) == expected
