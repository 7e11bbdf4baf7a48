"""Angles of chunks: the rope's own numbers for every token, and one table for all chunks at the same place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.errors import ShapeError
from pagedvid.rotary.angles import Angles
from pagedvid.rotary.grid_rotary import GridRotary

CPU = torch.device("cpu")
ROPE = GridRotary.from_theta((6, 6, 4), 3, 5, "half")


def made(places: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> Angles:
    return Angles.of(ROPE, places, dtype, CPU)


def same(found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("places", "tables"),
    [
        ([(0, 37)], [0]),
        ([(30, 45), (7, 45), (0, 45)], [0, 1, 2]),
        ([(15, 1), (15, 1)], [0, 0]),
        ([(45, 30), (0, 30), (45, 30), (0, 30), (30, 30)], [0, 1, 0, 1, 2]),
    ],
)
def test_every_token_gets_the_numbers_of_the_rope(places: list[tuple[int, int]], tables: list[int]) -> None:
    angles = made(places)
    assert angles.table_S.tolist() == tables and angles.table_S.dtype == torch.int32
    assert angles.cos_UnP.shape == angles.sin_UnP.shape == (max(tables) + 1, places[0][1], 8)
    assert angles.cos_UnP.is_contiguous() and angles.sin_UnP.is_contiguous()
    by_chunk = angles.by_chunk()
    for chunk, place in enumerate(places):
        assert same(angles.at(chunk), ROPE.tables(*place))
        assert same((by_chunk[0][chunk], by_chunk[1][chunk]), ROPE.tables(*place))


def test_in_the_dtype_of_the_model() -> None:
    cos, sin = ROPE.tables(30, 15)
    assert same(made([(30, 15)], torch.bfloat16).at(0), (cos.bfloat16(), sin.bfloat16()))


@pytest.mark.parametrize("places", [[(0, 15), (30, 15)], [(0, 15), (0, 15), (0, 15)]])
def test_nothing_is_copied_where_all_chunks_share_a_table_or_none_do(places: list[tuple[int, int]]) -> None:
    angles = made(places)
    for table, kept in zip((*angles.by_chunk(), *angles.at(0)), (angles.cos_UnP, angles.sin_UnP) * 2, strict=True):
        assert table.data_ptr() == kept.data_ptr()


def test_chunks_of_different_lengths_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"chunks of \[15, 30\] tokens"):
        made([(0, 15), (15, 30)])
    with pytest.raises(ShapeError, match=r"chunks of \[15, 30\] tokens"):
        Angles.shifted(ROPE, [(0, 15), (15, 30)], [0, 0], torch.float32, CPU)


@pytest.mark.parametrize(
    ("places", "stored", "tables"),
    [
        ([(0, 45), (90, 45)], [60, 90], [0, 1]),
        ([(30, 37), (30, 37), (30, 37)], [0, 0, 7], [0, 0, 1]),
    ],
)
def test_shifted_keys_rotate_on(places: list[tuple[int, int]], stored: list[int], tables: list[int]) -> None:
    """By complex numbers."""
    angles = Angles.shifted(ROPE, places, stored, torch.float32, CPU)
    assert angles.table_S.tolist() == tables
    for chunk, (place, position) in enumerate(zip(places, stored, strict=True)):
        here, there = (torch.complex(*ROPE.tables(first, place[1])) for first in (place[0], position))
        rotation = here * there.conj()
        torch.testing.assert_close(angles.at(chunk), (rotation.real, rotation.imag), rtol=0, atol=1e-6)


def test_each_stored_position_needs_its_place() -> None:
    with pytest.raises(ValueError, match="argument"):
        Angles.shifted(ROPE, [(0, 15), (15, 15)], [0], torch.float32, CPU)
