"""Tables from frequencies and positions: a float64 oracle, token by token and pair by pair; grids; what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import pagedvid
from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError, ShapeError
from pagedvid.rotary.grid_rotary import GridRotary, theta_frequencies
from pagedvid.rotary.tables import from_half_layout, rotate, to_half_layout
from tests.attention.scenes import HEAD_DIM, make_cache

NONE = torch.empty(0, dtype=torch.float64)
GRIDS = [(1, 1), (1, 7), (5, 1), (3, 5), (30, 52)]
PAIRS = [(3, 2, 1), (1, 0, 0), (0, 4, 0), (0, 0, 2), (22, 21, 21)]


def drawn(*sizes: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random numbers in -1 to 2, so that some frequencies and positions are negative."""
    generator = torch.Generator().manual_seed(sum(sizes))
    return [torch.rand(size, generator=generator, dtype=torch.float64).mul(3).sub(1).to(dtype) for size in sizes]


def angle(token: int, pair: int, frequencies: list[Tensor], positions: list[Tensor]) -> float:
    """The angle of one token and pair, in Python floats."""
    rows, columns = (len(each) for each in positions)
    frame, place = divmod(token, rows * columns)
    row, column = divmod(place, columns)
    at = (float(frame), float(positions[0][row]), float(positions[1][column]))
    for position, of_axis in zip(at, frequencies, strict=True):
        if pair < len(of_axis):
            return position * float(of_axis[pair])
        pair -= len(of_axis)
    return 0.0


@pytest.mark.parametrize("pairs", PAIRS)
@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("still", [0, 3])
def test_every_token_and_pair_has_its_angle(grid, pairs, still):
    frequencies, positions = drawn(*pairs), drawn(*grid)
    num_pairs, size = sum(pairs) + still, grid[0] * grid[1]
    rope = GridRotary(frequencies, positions, "half", head_dim=2 * num_pairs)
    for first_token, num_tokens in ((0, 2 * size), (3 * size, size), (1000 * size + size // 2, 9)):
        cos, sin = rope.tables(first_token, num_tokens)
        assert cos.shape == sin.shape == (num_tokens, num_pairs)
        assert cos.dtype == sin.dtype == torch.float32
        stride = 1 + num_tokens // 11  # some tokens of the larger grids
        angles = [
            [angle(first_token + n, pair, frequencies, positions) for pair in range(num_pairs)]
            for n in range(0, num_tokens, stride)
        ]
        for table, function in ((cos, math.cos), (sin, math.sin)):
            expected = torch.tensor([[function(each) for each in row] for row in angles], dtype=torch.float64)
            torch.testing.assert_close(table[::stride].double(), expected, rtol=0, atol=1e-6)
            assert bool((table[:, sum(pairs) :] == function(0)).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_angles_are_computed_in_the_dtype_of_the_frequencies(dtype):
    frequency = torch.tensor([0.1], dtype=dtype)
    rope = GridRotary.of_sequence(frequency, "half")
    token = 10_000_019
    expected = (torch.tensor([[token]], dtype=dtype) * frequency).cos().float()
    assert torch.equal(rope.tables(token, 1)[0], expected)
    exact = math.cos(token * float(frequency))
    assert (abs(float(expected) - exact) < 1e-6) == (dtype == torch.float64)


def test_a_part_of_a_table_is_the_table_of_the_part():
    rope = GridRotary(drawn(3, 2, 2, dtype=torch.float32), drawn(3, 5), "half")
    for whole, part in zip(rope.tables(0, 90), rope.tables(22, 31), strict=True):
        assert torch.equal(whole[22:53], part)


def test_positions_are_taken_in_any_dtype():
    frequencies = drawn(2, 3, 1, dtype=torch.float32)
    positions = (torch.arange(3), torch.arange(5, dtype=torch.float64))
    expected = GridRotary(frequencies, [each.float() for each in positions], "half").tables(0, 30)
    for ours, theirs in zip(GridRotary(frequencies, positions, "half").tables(0, 30), expected, strict=True):
        assert torch.equal(ours, theirs)


def test_parameters_are_taken_without_their_gradients():
    frequencies = [torch.nn.Parameter(each) for each in drawn(2, 1, 1)]
    cos, sin = GridRotary(frequencies, drawn(2, 2), "half").tables(0, 8)
    assert not cos.requires_grad and not sin.requires_grad


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_scores_depend_on_differences_of_positions_only(layout):
    rope = GridRotary.from_theta((4, 6, 6), 3, 5, layout)
    q, k = torch.randn(2, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def score(query_token: int, key_token: int) -> float:
        rotated = [
            from_half_layout(rotate(to_half_layout(x, layout), *(t[0].double() for t in rope.tables(n, 1))), layout)
            for x, n in ((q, query_token), (k, key_token))
        ]
        return float(rotated[0] @ rotated[1])

    shift = 20 * 15 + 5 + 1  # 20 frames, a row and a column on
    assert score(5, 15 + 8) == pytest.approx(score(5 + shift, 15 + 8 + shift), abs=1e-5)
    assert score(5, 15 + 8) != pytest.approx(score(5, 15 + 9), abs=1e-3)


@pytest.mark.parametrize(("num_channels", "theta"), [(2, 10000.0), (44, 10000.0), (28, 256.0)])
def test_the_usual_frequencies(num_channels, theta):
    found = theta_frequencies(num_channels, theta)
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx([theta ** (-2 * i / num_channels) for i in range(num_channels // 2)])
    assert theta_frequencies(0).shape == (0,)


def test_an_axis_without_pairs_and_the_usual_positions():
    rope = GridRotary.from_theta((0, 4, 2), 3, 5, "interleaved", theta=100.0, dtype=torch.float32)
    given = (torch.empty(0), theta_frequencies(4, 100.0, torch.float32), theta_frequencies(2, 100.0, torch.float32))
    same = GridRotary(given, (torch.arange(3), torch.arange(5)), "interleaved")
    assert rope.layout == "interleaved"
    assert all(torch.equal(*pair) for pair in zip(rope.tables(7, 40), same.tables(7, 40), strict=True))


def test_tokens_in_one_line():
    frequencies = theta_frequencies(8)
    rope = GridRotary.of_sequence(frequencies, "half")
    angles = torch.arange(100, 120, dtype=torch.float64)[:, None] * frequencies
    assert torch.equal(rope.tables(100, 20)[1], angles.sin().float())


def test_the_last_tables_are_kept():
    rope = GridRotary(drawn(1, 1, 1), drawn(2, 2), "half", num_cached=2)
    first = rope.tables(0, 4)
    assert rope.tables(0, 4) is first
    rope.tables(4, 4)
    assert rope.tables(0, 4) is first
    rope.tables(8, 4)
    rope.tables(12, 4)
    assert rope.tables(0, 4) is not first
    none_kept = GridRotary.of_sequence(drawn(1)[0], "half", num_cached=0)
    assert none_kept.tables(0, 4) is not none_kept.tables(0, 4)


@pytest.mark.parametrize("place", [(3, 6), (6, 9), (5, 1)])
def test_whole_frames_only(place):
    rope = GridRotary.from_theta((4, 2, 2), 2, 3, "half", whole_frames=True)
    assert len(rope.tables(6, 12)[0]) == 12
    message = f"tokens {place[0]} to {sum(place)} cut a frame of 6 tokens; give whole frames"
    with pytest.raises(ShapeError, match=message):
        rope.tables(*place)
    assert len(GridRotary.from_theta((4, 2, 2), 2, 3, "half").tables(*place)[0]) == place[1]


F32, F64 = torch.zeros(2, dtype=torch.float32), torch.zeros(2, dtype=torch.float64)
THREE, TWO = (F64, F64, F64), (torch.arange(3), torch.arange(5))
REFUSED = {
    "two axes": (
        ((F64, F64), TWO, "half"),
        r"frequencies are .* \[\(2,\), \(2,\)\]; give one vector each for time,",
    ),
    "a matrix": (((F64, F64[None], F64), TWO, "half"), r"shapes \[\(2,\), \(1, 2\), \(2,\)\]"),
    "a number": (((F64, F64[0], F64), TWO, "half"), r"shapes \[\(2,\), \(\), \(2,\)\]"),
    "one tensor": ((torch.zeros(3, 2), TWO, "half"), "frequencies is tensor.*"),
    "lists": ((([0.1], [0.1], [0.1]), TWO, "half"), r"frequencies\[0\] is \[0.1\], of type list; give "),
    "two dtypes": (((F64, F32, F64), TWO, "half"), "are torch.float64 on cpu, torch.float32 on cpu, .*; give all in"),
    "bfloat16": (
        ((F32.bfloat16(),) * 3, TWO, "half"),
        "are torch.bfloat16 on cpu.*; give all in float32 or all in",
    ),
    "whole numbers": (((F32.long(),) * 3, TWO, "half"), "torch.int64 on cpu"),
    "three positions": (
        (THREE, (F64, F64, F64), "half"),
        "axis_positions are .*; give one vector each for row,",
    ),
    "no rows": ((THREE, (NONE, F64), "half"), "axis_positions has 0 rows and 2 columns; give the position of each row"),
    "no columns": ((THREE, (F64, NONE), "half"), "has 2 rows and 0 columns"),
    "a layout": ((THREE, TWO, "neox"), "layout is 'neox'; allowed are half, interleaved"),
}


@pytest.mark.parametrize("given", [[0.1], 0.1, None])
def test_tokens_in_one_line_need_a_tensor_of_frequencies(given):
    with pytest.raises(ConfigError, match=r"frequencies is .*; give a tensor"):
        GridRotary.of_sequence(given, "half")


@pytest.mark.parametrize("name", REFUSED)
def test_what_makes_no_tables_is_refused(name):
    arguments, message = REFUSED[name]
    with pytest.raises(ConfigError, match=message):
        GridRotary(*arguments)


@pytest.mark.parametrize("head_dim", [10, 13, 11.0, True])
def test_a_head_that_the_pairs_do_not_fit_into_is_refused(head_dim):
    """Six pairs rotate."""
    with pytest.raises(ConfigError, match=r"head_dim is (1\d; 6 frequencies need an even .* at least 12|11.0,|True,)"):
        GridRotary(THREE, TWO, "half", head_dim=head_dim)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 6), 3, 5), r"channels is \(4, 6\); give three numbers"),
        (((4, 5, 7), 3, 5), "5 channels cannot rotate in pairs; give an even number"),
        (((4, -2, 6), 3, 5), "channels is -2; it must be at least 0"),
        (((4, 6, 6), 0, 5), "rows is 0; it must be at least 1"),
        (((4, 6, 6), 3, 5.0), "columns is 5.0, of type float; it must be a whole number"),
    ],
)
def test_impossible_usual_grids_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        GridRotary.from_theta(*arguments, "half")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((9,), "9 channels cannot rotate in pairs"),
        ((8, 0.0), "theta is 0.0; it must be a number above 0"),
        ((8, 10.0, torch.bfloat16), "dtype is torch.bfloat16; allowed are torch.float32, torch.float64"),
    ],
)
def test_impossible_usual_frequencies_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        theta_frequencies(*arguments)


@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_a_cache_takes_it_and_finds_what_tables_without_a_grid_give(layout):
    rope = pagedvid.GridRotary.from_theta((HEAD_DIM // 2, HEAD_DIM // 4, HEAD_DIM // 4), 2, 5, layout)
    assert type(rope) is GridRotary

    class Bare:
        def __init__(self) -> None:
            self.layout, self.tables = rope.layout, rope.tables

    outs = []
    for given in (rope, Bare()):
        cache = make_cache("int2")
        stream = cache.open(Window(1, 2), 20)
        for seed in range(3):
            q, k, v = torch.randn(3, 20, 2, HEAD_DIM, generator=torch.Generator().manual_seed(seed)).unbind()
            with cache.commit([stream]) as step:
                outs.append(torch.stack([step.attend(layer, q, k, v, given) for layer in range(2)]))
    for with_grid, without in zip(outs[:3], outs[3:], strict=True):
        assert torch.equal(with_grid, without)
