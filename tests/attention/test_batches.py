"""Which ranges of a step are attended together."""

from __future__ import annotations

import pytest
import torch

from pagedvid.attention.batches import batches_of
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.window import Window
from tests.attention.scenes import make_cache

CPU = torch.device("cpu")
RANGE_BYTES = 2 * 2 * 80 * 64 * 4
"""Keys and values, 2 heads, 20 current and 60 context tokens, 64 float32 channels."""


def test_context_and_seen_chunks_take_room_as_well():
    cache = make_cache()
    stream, other = (cache.open(Window(0, 1), 20) for _ in range(2))
    asked = [QueryRange(stream), QueryRange(stream, num_tokens=7, sees_ranges=(0,)), QueryRange(other)]
    seen: dict[int, int] = {}
    with cache.step(asked) as step:
        ranges = step.plan.ranges
        batches_of(step.plan, [60, 60, 0], CPU, lambda range_, num: seen.setdefault(ranges.index(range_), num))
    assert seen == {0: 60 + 20, 1: 60 + 20 + 7, 2: 20}


@pytest.mark.parametrize(
    ("scratch", "sizes"), [(RANGE_BYTES, [1, 1]), (2 * RANGE_BYTES - 1, [1, 1]), (2 * RANGE_BYTES, [2])]
)
def test_as_many_as_the_scratch_holds(scratch: int, sizes: list[int]):
    cache = make_cache(scratch=scratch)
    streams = [cache.open(Window(0, 1), 20) for _ in range(2)]
    context = [(torch.randn(60, 2, 64), torch.randn(60, 2, 64)) for _ in streams]
    with cache.denoise(streams) as step:
        step.attend(0, *(torch.randn(40, 2, 64) for _ in "qkv"), context=context)
        assert [batch.num_ranges for batch in step._rotary[2].batches] == sizes
