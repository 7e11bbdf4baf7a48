"""The layers of the GPU benchmarks have the shapes of the models."""

from __future__ import annotations

from lib.layers import SHAPES


def test_chunks_and_frames_have_the_sizes_of_the_models() -> None:
    assert {name: shape.chunk_tokens for name, shape in SHAPES.items()} == {
        "wan-1.3b": 3 * 1560,
        "wan-14b": 3 * 1560,
        "magi-1-4.5b": 6 * 2025,
        "hy-worldplay-8b": 4 * 1560,
        "tiny": 70,
    }
    cos, _ = SHAPES["tiny"].rope().tables(0, 70)
    assert cos.shape == (70, 16)
    assert bool((cos[0, 6:] == cos[35, 6:]).all()), "the next frame of 5 x 7 tokens"
