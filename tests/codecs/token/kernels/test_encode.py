"""Writing pages of per-token codes, against the codecs: byte for byte where nothing is rotated."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.token.kernels.encode import encode_token
from tests.codecs.token.kernels.scenes import CODECS, TokenScene, widest

TOKEN_CODECS = [codec for codec in CODECS if codec.startswith("token")]
HADAMARD_CODECS = [codec for codec in CODECS if codec.startswith("hadamard")]


def awkward(scene: TokenScene, num_tokens: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Tokens [n, H, D] with groups of very different size, constant and zero tokens, an outlier and an offset."""
    x = scene.randn(num_tokens, scene.num_heads, scene.head_dim) * torch.linspace(1e-3, 4, scene.head_dim)
    x[num_tokens // 2, :, 9] = 1e4
    x[num_tokens // 3] = 0.3
    x[num_tokens // 4, 0] = 0.0
    x[num_tokens // 5, :, 16:] += 900.0
    return x.to(dtype)


def check_bytes(scene: TokenScene, x_nHD: Tensor) -> None:
    """Checks that pages are those of the codec and that no other page is written."""
    pages = scene.take(len(x_nHD)).long()
    expected = scene.records.clone()
    expected[pages] = scene.codec.encode(x_nHD.transpose(0, 1))
    bad = encode_token(x_nHD, scene.records, scene.layout, pages.int())
    assert torch.equal(scene.records, expected)
    assert bad.shape[0] == scene.num_heads and bad.dtype == torch.uint8 and not bad.any()


@pytest.mark.parametrize("codec", TOKEN_CODECS)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("num_tokens", [1, 17, 300])
def test_bytes_are_those_of_the_codec(codec: str, head_dim: int, num_tokens: int) -> None:
    scene = TokenScene(widest(codec, head_dim), head_dim)
    check_bytes(scene, awkward(scene, num_tokens))


@pytest.mark.parametrize("codec", TOKEN_CODECS)
def test_bfloat16(codec: str) -> None:
    scene = TokenScene(codec, 128)
    check_bytes(scene, awkward(scene, 70, torch.bfloat16))


@pytest.mark.parametrize(
    ("codec", "rows", "page_tokens"), [("token2-g64", 36, 115), ("token2-g16", 37, 74), ("token4-g32", 18, 28)]
)
def test_pages_of_any_number_of_tokens(codec: str, rows: int, page_tokens: int) -> None:
    scene = TokenScene(codec, 128, num_heads=1, rows=rows)
    assert scene.layout.page_tokens == page_tokens
    check_bytes(scene, awkward(scene, 2 * page_tokens + 1))


def test_any_strides() -> None:
    scene = TokenScene("token4-g32", 64)
    check_bytes(scene, scene.randn(3, 90, 64)[1:].transpose(0, 1))


def test_some_columns_of_a_page_table() -> None:
    scene = TokenScene("token4-g32", 64)
    x = scene.randn(90, 2, 64)
    table = torch.cat([scene.take(90), scene.take(90)], dim=1)
    pages = table[:, : table.shape[1] // 2]
    expected = scene.records.clone()
    expected[pages.long()] = scene.codec.encode(x.transpose(0, 1))
    encode_token(x, scene.records, scene.layout, pages)
    assert torch.equal(scene.records, expected)


def test_a_step_size_of_zero() -> None:
    """Tokens that are constant, and exactly so in fp16."""
    scene = TokenScene("token2-g64", 64)
    check_bytes(scene, torch.full((20, 2, 64), 0.5))


@pytest.mark.parametrize("codec", HADAMARD_CODECS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotated_bytes_differ_by_the_rounding_of_a_product(codec: str, dtype: torch.dtype) -> None:
    scene = TokenScene(codec, 128)
    x = (scene.randn(300, 2, 128) * torch.linspace(0.3, 2, 128)).to(dtype)
    pages = scene.take(300)
    encode_token(x, scene.records, scene.layout, pages)
    differs = scene.records[pages.long()] != scene.codec.encode(x.transpose(0, 1))
    assert differs.float().mean() < 2e-4


@pytest.mark.parametrize("codec", HADAMARD_CODECS)
@pytest.mark.parametrize("head_dim", [32, 64, 128])
@pytest.mark.parametrize("num_tokens", [1, 17, 300])
def test_rotated_tokens_stay_within_half_a_step_size(codec: str, head_dim: int, num_tokens: int) -> None:
    """The rotation takes a constant token to one channel; the others are rounding errors, so bytes may differ."""
    scene = TokenScene(widest(codec, head_dim), head_dim)
    x = awkward(scene, num_tokens)
    pages = scene.take(num_tokens).long()
    expected = scene.records.clone()
    assert not encode_token(x, scene.records, scene.layout, pages.int()).any()
    records = scene.records[pages]
    expected[pages] = records
    assert torch.equal(scene.records, expected)  # no other page was written
    used_bytes = scene.layout.page_tokens * read_codec(scene.codec_name).token_bytes(scene.page)
    assert not records[..., used_bytes:].any()

    x_HnD = x.transpose(0, 1)
    buffer = torch.empty(scene.num_heads, read_codec(scene.codec_name).padded_tokens(scene.page, num_tokens), head_dim)
    step_sizes = scene.codec.token_step_sizes(records, num_tokens)
    error = (scene.codec.decode(records, num_tokens, buffer) - x_HnD) @ scene.layout.matrix
    rounding = 1e-6 * x_HnD.norm(dim=-1, keepdim=True)
    assert (error.unflatten(-1, (step_sizes.shape[-1], -1)).abs().amax(-1) <= step_sizes / 2 + rounding).all()
    exact_step_sizes = scene.codec.token_step_sizes(scene.codec.encode(x_HnD), num_tokens)
    torch.testing.assert_close(step_sizes, exact_step_sizes, rtol=2e-3, atol=float(rounding.max()))


@pytest.mark.filterwarnings("ignore:invalid value", "ignore:overflow", "ignore:All-NaN")
@pytest.mark.parametrize("codec", ["token2-g64", "hadamard2-g64"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 3e38, -1e7])
def test_values_that_no_page_can_hold_are_flagged_by_head(codec: str, value: float) -> None:
    scene = TokenScene(codec, 64, num_heads=3)
    x = scene.randn(40, 3, 64)
    x[33, 1, 50] = value
    bad = encode_token(x, scene.records, scene.layout, scene.take(40))
    assert bad.bool().any(1).tolist() == [False, True, False]


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize(("value", "flagged"), [(65504.0, True), (-65504.0, True), (65472.0, False)])
def test_the_largest_fp16_number_is_flagged(value: float, flagged: bool) -> None:
    scene = TokenScene("token8-g128", 128)
    x = scene.randn(10, 2, 128)
    x[0, 0, 0] = value
    bad = encode_token(x, scene.records, scene.layout, scene.take(10))
    assert bad.bool().any(1).tolist() == [flagged, False]


@pytest.mark.filterwarnings("ignore:overflow")
def test_what_is_stored_must_be_storable() -> None:
    """Rotated, 1e5 is spread over 64 channels, and 60000 in each of them adds up."""
    spread, summed = torch.zeros(10, 2, 64), torch.zeros(10, 2, 64)
    spread[3, 1, 5] = 1e5
    summed[3, 1] = 60000.0
    for codec, x, flagged in (
        ("token2-g64", spread, True),
        ("token2-g64", summed, False),
        ("hadamard2-g64", spread, False),
        ("hadamard2-g64", summed, True),
    ):
        scene = TokenScene(codec, 64)
        bad = encode_token(x, scene.records, scene.layout, scene.take(10))
        assert bad.bool().any(1).tolist() == [False, flagged]


def test_pages_beyond_four_gibibytes_are_reached() -> None:
    scene = TokenScene("token2-g64", 64)
    x = awkward(scene, 100)
    pool, far = scene.copy_far(scene.take(100))
    encode_token(x, pool, scene.layout, far)
    assert torch.equal(pool[far.long()], scene.codec.encode(x.transpose(0, 1)))
