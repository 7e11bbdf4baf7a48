"""Bytes of a video's memory at the published sizes."""

from __future__ import annotations

import pytest

from pagedvid.models.worldplay.memory import MEMORY_8B, MEMORY_WAN
from tests.models.specs import spec_of
from tests.models.worldplay.recordings import NUM_CHUNKS, VARIANTS, memory_frames, policy
from tests.models.worldplay.sizes import memory_bytes, text_bytes

PUBLISHED = {
    "8b": (spec_of("hy-worldplay-8b").geometry, MEMORY_8B),
    "5b": (spec_of("hy-worldplay-5b").geometry, MEMORY_WAN),
}


@pytest.mark.parametrize(("variant", "tokens", "layers", "heads"), [("8b", 1560, 54, 16), ("5b", 880, 30, 24)])
def test_published_geometry(variant, tokens, layers, heads):
    geometry, _ = PUBLISHED[variant]
    assert (geometry.tokens_per_frame, geometry.num_layers, geometry.num_kv_heads) == (tokens, layers, heads)
    assert geometry.head_dim == 128 and geometry.chunk_tokens == 4 * tokens


@pytest.mark.parametrize("seconds", [10, 60])
@pytest.mark.parametrize(("variant", "frames", "original"), [("8b", 20, 27.6e9), ("5b", 16, 10.4e9)])
@pytest.mark.parametrize(("codec", "ratio"), [("bf16", 2.0), ("int8", 3.55), ("int4", 7.1), ("int2", 14.2)])
def test_one_copy_is_half_before_any_quantization(seconds, variant, frames, original, codec, ratio):
    """The original keeps two copies in BF16; the memory is as long for a minute as for ten seconds."""
    kept = memory_bytes(*PUBLISHED[variant], num_frames=6 * seconds, codec=codec)
    assert kept.memory_frames == frames
    assert kept.original_bytes == pytest.approx(original, rel=0.005)
    assert kept.ratio == pytest.approx(ratio, rel=0.01)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_frames_are_those_of_the_recordings(variant):
    geometry, _ = PUBLISHED["8b"]
    for chunk in range(NUM_CHUNKS):
        kept = memory_bytes(geometry, policy(variant), 4 * chunk + 4, "bf16")
        assert kept.memory_frames == len(memory_frames(variant, chunk))


def test_a_video_of_one_chunk_keeps_nothing():
    assert memory_bytes(*PUBLISHED["8b"], num_frames=4, codec="int2").stored_bytes == 0


def test_text_keys_of_the_8b():
    assert text_bytes(PUBLISHED["8b"][0], 1000) == 2 * 2 * 1000 * 54 * 16 * 128
