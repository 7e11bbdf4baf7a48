"""Arguments of a network in two parts, and what makes two layouts different."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pagedvid.errors import ShapeError
from pagedvid.networks.arguments import taken_apart


@dataclass(frozen=True)
class Inputs:
    sizes: list[int]
    rows: tuple[Tensor, ...]


X, Y = torch.arange(3.0), torch.ones(2, 2, dtype=torch.int64)


def test_other_tensors_come_back_in_the_same_places() -> None:
    layout, tensors = taken_apart([X, [None, "text", 2.5], Inputs([4, 5], (Y, X))])
    assert len(tensors) == 2 and tensors[0] is X and tensors[1] is Y
    one, two = X + 1, Y + 1
    first, values, inputs = layout.filled([one, two])
    assert first is one and values == [None, "text", 2.5]
    assert isinstance(inputs, Inputs) and inputs.sizes == [4, 5]
    assert inputs.rows[0] is two and inputs.rows[1] is one


@pytest.mark.parametrize(
    "other",
    [
        [X, Inputs([4], (X,))],
        [X, Inputs([5], (Y,))],
        [X, Inputs([4], (Y, Y))],
        [X, Inputs([4], (Y[:1],))],
        [X.double(), Inputs([4], (Y,))],
        [[X], Inputs([4], (Y,))],
        [X, Inputs([4], (Y,)), 1],
    ],
)
def test_whatever_changes_the_operations_changes_the_layout(other: list[object]) -> None:
    layout, _ = taken_apart([X, Inputs([4], (Y,))])
    same, _ = taken_apart([X + 1, Inputs([4], (Y * 2,))])
    assert same == layout and hash(same) == hash(layout)
    assert taken_apart(other)[0] != layout


def test_anything_else_is_refused_by_name() -> None:
    with pytest.raises(ShapeError, match="a set among the arguments of a network"):
        taken_apart([X, {1, 2}])
