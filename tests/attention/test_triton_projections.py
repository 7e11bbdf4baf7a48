"""Projective views on the GPU backends, run by Triton's interpreter, against keys and values mapped one by one."""

from __future__ import annotations

import pytest
import torch

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.errors import StateError
from pagedvid.paged_kv_cache import PagedKVCache
from tests.attention.projective_reference import SeededProjection, expected_projection
from tests.attention.reference import TableRope, random_qkv
from tests.attention.triton_scenes import small_cache

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs the interpreter; test_gpu.py runs on a GPU")
SIZE = 6
"""Tokens per frame: pages that end inside a frame."""
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 4e-2}


def frames(stream, seed: int, num_frames: int, **asked) -> QueryRange:
    return QueryRange(stream, num_tokens=num_frames * SIZE, tag=(seed, num_frames), **asked)


def check_views(
    cache: PagedKVCache, ranges: list[QueryRange], seed: int, layout: str, dtype=torch.float32, texts=()
) -> None:
    """The projective view of every layer of a step; the rotary one has its own tests."""
    rope, projection = TableRope(layout, 32), SeededProjection(SIZE, layout)
    with cache.step(ranges) as step:
        for layer in range(cache.spec.num_layers):
            q, k, v = (0.5 * x for x in random_qkv(cache, step.plan.num_tokens, 10 * seed + layer, dtype))
            context = [tuple(x[:n] for x in random_qkv(cache, n, 7 + n, dtype)[1:]) if n else None for n in texts]
            both = step.attend(layer, q, k, v, rope, projections=[projection], context=context)
            expected = expected_projection(cache, step, layer, q, k, v, projection, context)
            atol = TOLERANCE[dtype] * float(expected.abs().max())
            torch.testing.assert_close(both[1].double(), expected, rtol=0, atol=atol)


def stream_of(cache: PagedKVCache, lengths: list[int], layout: str, dtype=torch.float32):
    stream = cache.open(Window(1, 2, positions="window"), 12 * SIZE)
    for i, num_frames in enumerate(lengths):
        check_views(cache, [frames(stream, i, num_frames, commit=True)], i, layout, dtype)
    return stream


@pytest.mark.parametrize(
    ("codec", "correction"), [("bf16", "off"), ("int2", "off"), ("int2", "measured"), ("int8", "formula")]
)
@pytest.mark.parametrize("layout", ["half", "interleaved"])
def test_codecs_corrections_and_layouts(codec: str, correction: str, layout: str) -> None:
    cache = small_cache(codec, correction=correction)
    stream = stream_of(cache, [5, 2], layout)
    check_views(cache, [frames(stream, 7, 3)], 90, layout)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_streams_in_flight_with_texts(dtype: torch.dtype) -> None:
    """Histories of different lengths and codecs, grouped heads, a range that sees another, texts or none."""
    cache = small_cache(StreamCodecs("int4", newest="bf16"), layers=2, group=3)
    a, b = (stream_of(cache, lengths, "interleaved", dtype) for lengths in ([3, 2], [2]))
    ranges = [
        frames(a, 11, 2),
        frames(b, 12, 2, commit=True),
        frames(b, 13, 1, sees_ranges=(1,)),
        frames(a, 15, 2, visible=(0,)),
    ]
    check_views(cache, ranges, 90, "interleaved", dtype, texts=[5, 0, 5, 2])


def test_denoise_steps_and_the_commit_of_a_chunk_share_their_tables() -> None:
    """New cameras for the same queries still take effect."""
    cache = small_cache("int4", correction="measured")
    stream = stream_of(cache, [3], "half")
    for seed in (1, 2):
        check_views(cache, [frames(stream, seed, 2)], 90, "half")
    check_views(cache, [frames(stream, 2, 2, commit=True)], 90, "half")


def test_a_world_far_away_costs_no_precision() -> None:
    """Only relative maps may matter: P_i P_f^-1 does not change when the world's origin moves."""

    class Far(SeededProjection):
        def maps(self, tag):
            forward, _ = super().maps(tag)
            shifted = torch.eye(4, dtype=torch.float64)
            shifted[:3, 3] = 1e4
            return forward @ shifted, torch.linalg.inv(forward @ shifted)

    outs = []
    for projection in (SeededProjection(SIZE), Far(SIZE)):
        cache = small_cache("fp32")
        stream = cache.open(Window(1, 2), 2 * SIZE)
        for number in range(2):
            with cache.step([frames(stream, number, 2, commit=number == 0)]) as step:
                q, k, v = (0.5 * x for x in random_qkv(cache, 2 * SIZE, number))
                out = step.attend(0, q, k, v, TableRope("half", 32), projections=[projection])[1]
        outs.append(out)
    torch.testing.assert_close(outs[1], outs[0], rtol=0, atol=1e-4 * float(outs[0].abs().max()))


def test_keys_stored_after_rotary_embedding_are_refused() -> None:
    cache = small_cache("int4-post", correction="off")
    stream = cache.open(Window(1, 2), 2 * SIZE)
    rope, projection = TableRope("half", 32), SeededProjection(SIZE)
    qkv = random_qkv(cache, 2 * SIZE, 1)
    with cache.step([frames(stream, 0, 2, commit=True)]) as step:
        step.attend(0, *qkv, rope)
    with cache.step([frames(stream, 1, 2)]) as step, pytest.raises(StateError, match="int4-post stores keys after"):
        step.attend(0, *qkv, rope, projections=[projection])
