"""Rows of the tables: honest bits, pages that suit the codec, and the transform codec where there is much to share."""

from __future__ import annotations

import pytest
import torch

from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.page import PageFormat
from pagedvid.codecs.registry import read_codec


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
    from schemes import bits_per_value, paged

    page = PageFormat(64, paged(codec, 64).rows)
    num_tokens = 18 * 32 if codec == "bf16" else 512
    assert bits_per_value(page, codec, num_tokens) == bits


def test_page_steps_and_token_steps_are_those_of_the_codec() -> None:
    from schemes import through_pages

    x = torch.randn(2, 200, 64, generator=torch.Generator().manual_seed(0))
    for name in ("int2", "int4", "token2-g64", "hadamard2-g64"):
        page = PageFormat(64)
        codec = CodecBook(page, 2).codec(read_codec(name), "keys", 0, slice(0, 2))
        stored = through_pages(page, codec, x)
        assert stored.step_square_HnD is not None and stored.step_square_HnD.shape == x.shape
        expected = codec.mean_square_step_sizes(codec.encode(x), 200)
        torch.testing.assert_close(stored.step_square_HnD.mean(1), expected)
        assert (stored.axes_DD is None) == (not name.startswith("hadamard"))
    page = PageFormat(64)
    exact = through_pages(page, CodecBook(page, 2).codec(read_codec("fp32"), "keys", 0, slice(0, 2)), x)
    assert torch.equal(exact.values_HnD, x) and exact.step_square_HnD is None


def test_the_transform_codec_beats_equal_bits_where_there_is_something_to_share(monkeypatch) -> None:
    import tensor_families
    from families import draw_family
    from tensor_level import measure_family

    def small(name: str, seed: int):
        return draw_family(name, seed, num_chunks=2, num_frames=3, frame_tokens=42)

    monkeypatch.setattr(tensor_families, "draw_family", small)
    monkeypatch.setattr(tensor_families, "CALIBRATION_VIDEOS", 2)
    family = tensor_families.synthetic_family("low rank", tensor_families.Sampling(1, 9, ["klt2.25", "int2"]))
    results = measure_family(family)
    assert results["klt2.25"]["bits"] <= results["int2"]["bits"]  # 126 tokens in one page either way
    errors = [results[name]["corrections"]["off"]["error"]["mean"] for name in ("klt2.25", "int2")]
    assert errors[0] < 0.5 * errors[1]
    studied = tensor_families.study_corrections(family, "int2")
    assert {"off", "per key, paper", "b x 4", "measured, all", "log Z, 16"} <= set(studied["corrections"])
