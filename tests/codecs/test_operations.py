"""Decoding by PyTorch operations: chunk by chunk what the codec and the rotation give, bit for bit."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.base import Codec, CodecOperations, make_codec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.rotary.angles import Angles
from pagedvid.rotary.tables import rotate
from tests.codecs.constant import ConstantCodec, ConstantSpec
from tests.codecs.decoding import check_out_heads
from tests.codecs.klt.kernels.scenes import klt_codec

CPU = torch.device("cpu")
NAMES = ("fp32", "bf16", "int2", "int4-s8", "int2-pair", "token2-g32", "hadamard4-g32", "klt1.5")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def codec_of(name: str, num_heads: int) -> Codec:
    if name.startswith("klt"):
        return klt_codec(name, 32, num_heads)
    return make_codec(read_codec(name), PageFormat(32))


def pool_of(codec: Codec, num_chunks: int, num_heads: int, num_tokens: int) -> tuple[Tensor, Tensor]:
    """(records, pages [S, H, P])."""
    generator = torch.Generator().manual_seed(0)
    x_RnD = torch.randn(num_chunks * num_heads, num_tokens, 32, generator=generator)
    records = codec.encode(x_RnD)
    pages = torch.randperm(records.shape[0] * records.shape[1], generator=generator).int()
    pool = torch.empty(pages.numel(), records.shape[-1], dtype=torch.uint8)
    pool[pages.long()] = records.flatten(0, 1)
    return pool, pages.view(num_chunks, num_heads, -1)


def angles_of(num_tokens: int, dtype: torch.dtype) -> Angles:
    theta = torch.randn(3, num_tokens, 16, generator=torch.Generator().manual_seed(1))
    return Angles(theta.cos().to(dtype), theta.sin().to(dtype), torch.tensor([0, 1, 0, 2], dtype=torch.int32))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_heads", [1, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("padded", [True, False], ids=["room for padding", "no room"])
def test_equals_the_codec(name: str, num_heads: int, dtype: torch.dtype, rotates: bool, padded: bool) -> None:
    codec, num_tokens = codec_of(name, num_heads), 90
    pool, pages_SHP = pool_of(codec, 4, num_heads, num_tokens)
    padded_tokens = pages_SHP.shape[2] * codec.page_tokens
    angles = angles_of(num_tokens, dtype) if rotates else None
    memory = torch.full((2, 2, num_heads, padded_tokens if padded else num_tokens, 32), 7.0, dtype=dtype)
    CodecOperations(codec, CPU).decode(pool, pages_SHP, num_tokens, memory.transpose(2, 3), angles)
    for chunk, pages_HP in enumerate(pages_SHP):
        buffer = torch.empty(num_heads, padded_tokens, 32, dtype=dtype)
        expected = codec.decode(pool[pages_HP.long()], num_tokens, buffer)
        if angles is not None:
            expected = rotate(expected, *angles.at(chunk))
        assert torch.equal(memory.flatten(0, 1)[chunk, :, :num_tokens], expected)


@pytest.mark.parametrize("name", ["int2", "klt1.5"])
@pytest.mark.parametrize("rotates", [True, False])
def test_nothing_beside_the_tokens_is_written(name: str, rotates: bool) -> None:
    codec = codec_of(name, 2)
    pool, pages_SHP = pool_of(codec, 4, 2, 90)
    memory = torch.full((2, 2, 2, 93, 32), 7.0)
    out = memory[..., 1:-2, :]
    operations = CodecOperations(codec, CPU)
    operations.decode(pool, pages_SHP, 90, out.transpose(2, 3), angles_of(90, torch.float32) if rotates else None)
    assert bool((out != 7).all())
    out.fill_(7)
    assert bool((memory == 7).all())


def test_float8_is_scaled_and_saturated() -> None:
    codec = codec_of("fp32", 2)
    pool, pages_SHP = pool_of(codec, 4, 2, 20)
    scales = torch.rand(4, 2) * 500
    expected, found = torch.empty(2, 2, 20, 2, 32), torch.empty(2, 2, 20, 2, 32, dtype=torch.float8_e4m3fn)
    operations, angles = CodecOperations(codec, CPU), angles_of(20, torch.bfloat16)
    operations.decode(pool, pages_SHP, 20, expected, angles)
    operations.decode(pool, pages_SHP, 20, found, angles, scales)
    scaled = expected * scales.view(2, 2, 1, 2, 1)
    assert scaled.abs().max() > 448
    assert torch.equal(found.float(), scaled.clamp(-448, 448).to(torch.float8_e4m3fn).float())


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float8_e4m3fn])
@pytest.mark.parametrize("rotates", [True, False])
def test_heads_that_are_not_neighbours(dtype: torch.dtype, rotates: bool) -> None:
    codec = codec_of("int4", 3)
    pool, pages_SHP = pool_of(codec, 4, 3, 90)
    angles = angles_of(90, torch.float32 if dtype.itemsize == 1 else dtype) if rotates else None
    scales = torch.rand(4, 3) * 500 if dtype.itemsize == 1 else None
    check_out_heads(CodecOperations(codec, CPU), pool, pages_SHP, 90, 32, angles, dtype, scales)


def test_a_codec_without_pages() -> None:
    """Every token is 3.0, of which nothing is stored."""
    codec = ConstantCodec(PageFormat(32), ConstantSpec("constant", 0.0))
    pool, operations = torch.empty(5, 36 * 32, dtype=torch.uint8), CodecOperations(codec, CPU)
    before = pool.clone()
    operations.encode(torch.rand(20, 2, 32), pool, torch.empty(2, 0, dtype=torch.int32))
    assert torch.equal(pool, before)
    pages_SHP = torch.empty(4, 2, 0, dtype=torch.int32)
    assert operations.mean_square_step_sizes(pool, pages_SHP, 20) is None
    for angles in (None, angles_of(20, torch.float32)):
        out = torch.zeros(2, 2, 20, 2, 32)
        operations.decode(pool, pages_SHP, 20, out, angles)
        threes = torch.full((2, 20, 32), 3.0)
        for chunk, found in enumerate(out.flatten(0, 1)):
            expected = threes if angles is None else rotate(threes, *angles.at(chunk))
            assert torch.equal(found.transpose(0, 1), expected)


def test_float16_stays_finite() -> None:
    codec = codec_of("fp32", 1)
    pool, pages_SHP = pool_of(codec, 4, 1, 20)
    pool.view(torch.float32).fill_(65000.0)
    out = torch.empty(2, 2, 20, 1, 32, dtype=torch.float16)
    CodecOperations(codec, CPU).decode(pool, pages_SHP, 20, out, angles_of(20, torch.float16))
    assert out.abs().max() == 65504


@pytest.mark.parametrize("name", ["int2", "token2-g32"])
def test_mean_square_step_sizes_of_several_chunks(name: str) -> None:
    codec = codec_of(name, 2)
    pool, pages_SHP = pool_of(codec, 4, 2, 300)
    found = CodecOperations(codec, CPU).mean_square_step_sizes(pool, pages_SHP, 120, first_token=70)
    assert found is not None and found.shape == (4, 2, 32)
    for chunk, pages_HP in enumerate(pages_SHP):
        expected = codec.mean_square_step_sizes(pool[pages_HP.long()], 120, 70)
        torch.testing.assert_close(found[chunk], expected, rtol=1e-6, atol=0)


def test_values_without_step_sizes_have_no_mean() -> None:
    codec = codec_of("bf16", 1)
    pool, pages_SHP = pool_of(codec, 1, 1, 30)
    assert CodecOperations(codec, CPU).mean_square_step_sizes(pool, pages_SHP, 30) is None
