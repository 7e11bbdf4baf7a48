"""Paged attention against dense attention, and one correction per chunk against one per key."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.window import Window
from tests.attention.oracle import Keys, oracle_attention
from tests.attention.reference import (
    as_arriving,
    random_qkv,
    read_chunk,
    rotate,
)
from tests.attention.scenes import ROPES, TOLERANCE, make_cache, ragged_ranges, run


@pytest.mark.parametrize(("codec", "rounding"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
@pytest.mark.parametrize("layout", [None, "half", "interleaved"])
@pytest.mark.parametrize("keys_arrive", ["before_rotary", "rotated"])
@pytest.mark.parametrize("group", [1, 3])
def test_raw_codecs_equal_a_dense_cache(codec, rounding, layout, keys_arrive, group):
    """I12: PyTorch's attention over the keys and values themselves (rounded to bf16), nothing read from pages.

    Keys that arrive rotated are un-rotated in float32 before rounding, which may round a bf16 key to its neighbour.
    """
    rope = ROPES[layout]
    cache = make_cache(codec, group=group, keys_arrive=keys_arrive)
    stream = cache.open(Window(1, 2, positions="window"), 150)
    kept: list[tuple[Tensor, Tensor]] = []
    for i, num_tokens in enumerate([150, 17, 129, 150]):
        with cache.commit([QueryRange(stream, num_tokens=num_tokens)]) as step:
            for layer in range(2):
                q, k, v = random_qkv(cache, num_tokens, 10 * i + layer)
                step.attend(layer, *(as_arriving(cache, step, x, rope) for x in (q, k)), v, rope)
        kept.append((k.to(rounding).float(), v.to(rounding).float()))
    with cache.denoise([stream]) as step:
        q, k, v = random_qkv(cache, 150, 99)
        out = step.attend(1, *(as_arriving(cache, step, x, rope) for x in (q, k)), v, rope)
    dense, start = [], 0
    for keys, values in [kept[0], kept[2], kept[3], (k, v)]:
        dense.append((rotate(keys, rope, start), values.double()))
        start += len(keys)
    keys, values = (torch.cat([pair[i] for pair in dense]).transpose(0, 1) for i in (0, 1))
    queries = rotate(q, rope, start - 150).transpose(0, 1)
    expected = F.scaled_dot_product_attention(
        queries, keys.repeat_interleave(group, 0), values.repeat_interleave(group, 0)
    )
    tolerance = 2e-3 if codec == "bf16" and keys_arrive == "rotated" else 1e-5
    torch.testing.assert_close(out.double(), expected.transpose(0, 1), rtol=0, atol=tolerance)


def test_bf16_and_fp32_pages_are_never_corrected():
    for codec in ("bf16", "fp32"):
        outs = []
        for correction in ("off", "formula", "measured"):
            cache = make_cache(codec, correction=correction)
            outs.append(run(cache, ragged_ranges(cache), 1))
        assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


def test_the_correction_does_change_quantized_pages():
    outs = {}
    for correction in ("off", "formula", "measured"):
        cache = make_cache("int2", correction=correction)
        outs[correction] = run(cache, ragged_ranges(cache), 1)
    for a, b in (("off", "formula"), ("off", "measured"), ("formula", "measured")):
        assert float((outs[a] - outs[b]).abs().max()) > 100 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("layout", [None, "half"])
def test_one_correction_per_chunk_is_close_to_one_per_key(layout):
    """Cached values are 1, current ones 0, so the output is the cached mass; the oracle corrects key by key."""
    rope = ROPES[layout]
    cache = make_cache("int2", correction="formula")
    stream = cache.open(Window(1, 1), 300)
    for seed in (1, 2):
        with cache.commit([stream]) as step:
            for layer in range(2):
                q, k, v = random_qkv(cache, 300, 10 * seed + layer)
                step.attend(layer, q, k, torch.ones_like(v), rope)
    with cache.denoise([QueryRange(stream, num_tokens=60)]) as step:
        q, k, v = random_qkv(cache, 60, 50)
        mass = step.attend(0, q, k, torch.zeros_like(v), rope)[:, :, 0].double()
        (planned,) = step.plan.ranges
        q_rotated, k_rotated = (rotate(x, rope, planned.first_token) for x in (q, k))
        for head in range(2):
            current = Keys(k_rotated[:, head], torch.zeros(60, 64))
            corrected, uncorrected = [current], [current]
            for read in planned.reads:
                keys, values, step_sizes = (x[head] for x in read_chunk(cache, read.chunk, 0))
                cos, sin = (None, None) if rope is None else rope.tables(read.first_token, 300)
                corrected.append(Keys(keys, values, step_sizes, cos, sin))
                uncorrected.append(Keys(keys, values, None, cos, sin))
            exact, _ = oracle_attention(q_rotated[:, head], corrected, cache.spec.scale)
            wrong, _ = oracle_attention(q_rotated[:, head], uncorrected, cache.spec.scale)
            left, shifted = mass[:, head] - exact[:, 0], wrong[:, 0] - exact[:, 0]
            assert float(shifted.mean()) > 0.002
            assert float(left.abs().max()) < 0.1 * float(shifted.max())
            assert float(left.abs().mean()) < 0.05 * float(shifted.mean())
