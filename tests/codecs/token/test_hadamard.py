"""Tokens quantized on rotated channels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.base import Codec, make_codec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.token.codec import HadamardCodec, TokenCodec
from pagedvid.codecs.token.hadamard import hadamard_matrix
from pagedvid.errors import NonFiniteError
from tests.codecs.page_reader import decode

PAGE = PageFormat(64)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mean_square_error(codec: Codec, x: Tensor) -> float:
    return float((decode(codec, PAGE, codec.encode(x), x.shape[1]) - x).square().mean())


@pytest.mark.parametrize("size", [2, 24, 64, 128])
def test_the_rotation_is_orthonormal_and_symmetric(size):
    matrix = hadamard_matrix(size)
    torch.testing.assert_close(matrix @ matrix, torch.eye(size), atol=1e-6, rtol=0)
    assert torch.equal(matrix, matrix.T)


@pytest.mark.parametrize("size", [24, 64])
def test_every_channel_is_spread_evenly_over_its_block(size):
    power = size & -size
    assert torch.equal(
        hadamard_matrix(size).abs() > 0, torch.block_diag(*[torch.ones(power, power)] * (size // power)) > 0
    )
    torch.testing.assert_close(hadamard_matrix(size).abs().amax(0), torch.full((size,), power**-0.5))


def test_what_is_stored_are_the_rotated_channels():
    x = randn(2, 200, 64)
    codec, tokens = HadamardCodec(PAGE, read_codec("hadamard4-g32")), TokenCodec(PAGE, read_codec("token4-g32"))
    records = codec.encode(x)
    assert torch.equal(records, tokens.encode(x @ hadamard_matrix(64)))
    assert torch.equal(codec.token_step_sizes(records, 200), tokens.token_step_sizes(records, 200))


def test_rotation_tames_an_outlier_channel():
    x = randn(1, 200, 64)
    x[..., 5] *= 20
    plain, rotated = TokenCodec(PAGE, read_codec("token2-g64")), HadamardCodec(PAGE, read_codec("hadamard2-g64"))
    assert mean_square_error(rotated, x) < 0.5 * mean_square_error(plain, x)


def test_the_axes_are_the_directions_of_the_quant_error():
    """The mean square error along `axes` is that of the step sizes."""
    x = randn(1, 4000, 64) * torch.linspace(0.1, 3, 64)
    codec = HadamardCodec(PAGE, read_codec("hadamard4-g16"))
    records = codec.encode(x)
    error = (decode(codec, PAGE, records, 4000) - x)[0] @ codec.axes.T
    ratio = error.square().mean(0) / (codec.mean_square_step_sizes(records, 4000)[0] / 12)
    assert float(ratio.min()) > 0.8 and float(ratio.max()) < 1.0  # the smallest and the largest of 16 have no error
    assert codec.axes is codec.axes


def test_rotated_values_beyond_fp16_are_refused():
    """The rotation takes constant tokens to a single channel, sqrt(D) times as large."""
    with pytest.raises(NonFiniteError, match="2 too large") as caught:
        HadamardCodec(PAGE, read_codec("hadamard2-g64")).encode(
            torch.stack([torch.full((2, 64), 1e3), torch.full((2, 64), 1e4)])
        )
    assert caught.value.rows == (1,)
    single = torch.zeros(1, 2, 64)
    single[0, 1, 3] = 7e4  # spread over 64 channels, this is no problem
    assert mean_square_error(HadamardCodec(PAGE, read_codec("hadamard8-g64")), single) < (1e-3 * 7e4) ** 2


def test_only_hadamard_names_stand_for_rotated_channels():
    assert type(make_codec(read_codec("token2-g64"), PAGE)) is TokenCodec
    assert type(make_codec(read_codec("hadamard2-g64"), PAGE)) is HadamardCodec
