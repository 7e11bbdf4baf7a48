"""Rotary tables of the demo model: shape, caching, what each pair rotates with, and that only distances matter."""

from __future__ import annotations

import pytest
import torch

from pagedvid.models.demo.network import demo_rotary
from pagedvid.rotary.tables import rotate

ROPE = demo_rotary(head_dim=64, rows=4, columns=4)


def test_tables_have_the_promised_form_and_are_cached() -> None:
    cos, sin = ROPE.tables(128, 128)
    assert cos.shape == sin.shape == (128, 32)
    assert cos.dtype == sin.dtype == torch.float32
    assert torch.allclose(cos.square() + sin.square(), torch.ones(128, 32))
    assert ROPE.tables(128, 128)[0] is cos
    assert ROPE.layout == "half"


def test_a_part_of_a_table_is_the_table_of_the_part() -> None:
    for whole, part in zip(ROPE.tables(0, 768), ROPE.tables(256, 128), strict=True):
        assert torch.equal(whole[256:384], part)


def test_half_of_the_pairs_rotate_with_time_and_a_quarter_with_each_side() -> None:
    cos, _ = ROPE.tables(0, 32)
    same = [(cos[0] == cos[other]).tolist() for other in (16, 4, 1)]  # next frame, next row, next column
    assert same[0] == [False] * 16 + [True] * 16
    assert same[1] == [True] * 16 + [False] * 8 + [True] * 8
    assert same[2] == [True] * 24 + [False] * 8


def test_scores_depend_on_the_distance_only() -> None:
    q, k = torch.randn(2, 1, 3, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).unbind()

    def scores(query_token: int, key_token: int) -> torch.Tensor:
        places = ((q, query_token), (k, key_token))
        rotated = [rotate(x, *(table.double() for table in ROPE.tables(token, 1))) for x, token in places]
        return (rotated[0] * rotated[1]).sum(-1)

    near = scores(5, 16 + 10)
    assert torch.allclose(near, scores(5 + 20 * 16, 16 + 10 + 20 * 16), atol=1e-5)
    assert not torch.allclose(near, scores(5, 16 + 11), atol=1e-2)


def test_rotation_keeps_lengths_and_pairs_c_with_c_plus_half() -> None:
    x = torch.zeros(1, 1, 64)
    x[..., 3] = 2.0
    cos, sin = ROPE.tables(80, 1)
    rotated = rotate(x, cos, sin)
    assert rotated.norm() == pytest.approx(2.0, abs=1e-6)
    assert rotated[0, 0, 3] == 2 * cos[0, 3] and rotated[0, 0, 35] == 2 * sin[0, 3]


def test_a_head_size_that_cannot_be_split_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"head_dim is 60"):
        demo_rotary(head_dim=60, rows=4, columns=4)
