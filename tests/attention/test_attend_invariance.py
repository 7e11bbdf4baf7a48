"""What must not change the result of `step.attend`: scratch size, other streams, threads, page order, strides."""

from __future__ import annotations

import pytest
import torch

from pagedvid.attention.dense.torch_cpu import row_parts
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.window import Window
from tests.attention.reference import (
    random_qkv,
)
from tests.attention.scenes import ROPES, commit_all, make_cache, ragged_ranges, run


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("scratch", [1, 40_000, 200_000])
def test_the_size_of_the_scratch_does_not_matter(scratch, dtype):
    """One byte: one head of one range at a time. 64 MiB: everything in one call."""
    outs = []
    for size in (scratch, "64MiB"):
        cache = make_cache(group=3, scratch=size)
        outs.append(run(cache, ragged_ranges(cache, ROPES["half"]), 1, ROPES["half"], dtype))
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=1e-5 if dtype == torch.float32 else 2e-2)


@pytest.mark.parametrize("num_threads", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_the_number_of_threads_does_not_matter(dtype, num_threads, monkeypatch):
    """The rows of one large head are cut into one part per thread."""
    cache = make_cache(scratch=1)
    stream = cache.open(Window(1, 1), 2340)
    commit_all(cache, stream, [2340], 1)
    q, k, v = random_qkv(cache, 2340, 5, dtype)
    outs = []
    for number in (1, num_threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        with cache.denoise([stream]) as step:
            outs.append(step.attend(0, q, k, v))
    assert row_parts(torch.empty(1, 1, 2340, 64), num_threads) == num_threads
    torch.testing.assert_close(outs[0], outs[1], rtol=0, atol=2e-6 if dtype == torch.float32 else 8e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_other_streams_in_the_step_do_not_matter(dtype):
    cache = make_cache("int2", correction="formula")
    ranges = [QueryRange(r.stream, r.branch, r.num_tokens) for r in ragged_ranges(cache)]
    q, k, v = random_qkv(cache, sum(r.num_tokens or r.stream.chunk_tokens for r in ranges), 77, dtype)
    q[200:] *= 8  # outlier channels in some of the streams
    with cache.denoise(ranges) as step:
        together = step.attend(0, q, k, v)
        bounds = [(r.start, r.stop) for r in step.plan.ranges]
    for asked, (start, stop) in zip(ranges, bounds, strict=True):
        with cache.denoise([asked]) as step:
            alone = step.attend(0, q[start:stop], k[start:stop], v[start:stop])
        torch.testing.assert_close(alone, together[start:stop], rtol=0, atol=2e-6 if dtype == torch.float32 else 8e-3)


def test_the_order_of_pages_in_the_pool_does_not_matter():
    """I12: the same video in a fresh pool and in one whose free pages are shuffled."""
    outs = []
    for is_shuffled in (False, True):
        cache = make_cache()
        if is_shuffled:
            before = [cache.open(Window(0, 1), n) for n in (150, 129, 20)]
            for i in (0, 1, 2, 1, 0):
                run(cache, [QueryRange(before[i], commit=True)], i)
            cache.release(before[1])
        stream = cache.open(Window(1, 2), 150)
        commit_all(cache, stream, [150, 150, 150, 150], 40)
        outs.append(run(cache, [QueryRange(stream)], 60))
    assert torch.equal(outs[0], outs[1])


def test_strides_of_the_inputs_do_not_matter_and_inputs_are_not_changed():
    """Queries, keys and values are often views of one fused projection."""
    rope = ROPES["interleaved"]
    fused = torch.randn(40, 3, 2, 64, generator=torch.Generator().manual_seed(0))
    dense = [x.clone() for x in fused.unbind(1)]
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in dense]
    outs, written = [], []
    for inputs in (dense, fused.unbind(1), heads_first):
        cache = make_cache()
        stream = cache.open(Window(1, 1), 40)
        commit_all(cache, stream, [40], 1, rope)
        with cache.commit([stream]) as step:
            outs += [step.attend(layer, *inputs, rope) for layer in range(2)]
        written.append(cache.pool.read(list(stream.chunks())[-1].table.ids))
        assert all(torch.equal(x, y) for x, y in zip(inputs, dense, strict=True))
        torch.testing.assert_close(outs[-2:], outs[:2])
        assert all(torch.equal(x, y) for x, y in zip(written[-1], written[0], strict=True))
