"""Schemes: bits that count everything, pages that suit the codec, and its step sizes."""

from __future__ import annotations

import pytest
import torch

from lib.schemes import bits_per_value, paged, through_pages
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat


@pytest.mark.parametrize(
    ("codec", "bits"),
    [
        ("int2", 2.25),
        ("int4", 4.5),
        ("int2-pair-s8", 2.1875),
        ("int2-post", 2.25),
        ("token2-g64", 2.5),
        ("token4-g64", 4.5),
        ("hadamard2-g32", 3.0),
        ("bf16", 16.0),
    ],
)
def test_bits_of_a_chunk_that_fills_its_pages(codec: str, bits: float) -> None:
    page = PageFormat(64, paged(codec, 64).rows)
    num_tokens = 18 * 32 if codec == "bf16" else 512
    assert bits_per_value(page, codec, num_tokens) == bits


def test_step_sizes_of_pages_and_of_tokens_are_those_of_the_codec() -> None:
    x = torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(0))
    for name in ("int2", "int4", "token2-g64", "hadamard2-g64"):
        page = PageFormat(64)
        codec = CodecBook(page, 2).codec(read_codec(name), "keys", 0, (0, 1))
        stored = through_pages(page, codec, x)
        assert stored.square_step_size_HnD is not None and stored.square_step_size_HnD.shape == x.shape
        expected = codec.mean_square_step_sizes(codec.encode(x), 200)
        torch.testing.assert_close(stored.square_step_size_HnD.mean(1), expected)
        assert (stored.axes_DD is None) == (not name.startswith("hadamard"))
    page = PageFormat(64)
    exact = through_pages(page, CodecBook(page, 2).codec(read_codec("fp32"), "keys", 0, (0, 1)), x)
    assert torch.equal(exact.values_HnD, x) and exact.square_step_size_HnD is None
