"""Attention to the tokens that are left, against float64 attention that never had the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from peers.eviction import AdaKV, HeadCounts
from peers.eviction_cache import EvictingCache
from tests.attention.reference import TableRope, expected_attention, pairs_together, random_qkv, read_head, rotate
from tests.attention.scenes import commit_all

COUNTS = HeadCounts(((3, 7), (0, 20)))
ROPES = {None: None, "half": TableRope("half", 16), "interleaved": TableRope("interleaved", 16)}


def evicting(scorer: str, allotment=COUNTS, **spec) -> EvictingCache:
    """Two layers, two KV heads of two query heads each."""
    spec = CacheSpec(2, 2, 16, num_query_heads=4, codecs=StreamCodecs("fp32"), **spec)
    return EvictingCache(spec, "4MiB", scorer=scorer, allotment=allotment)


def masked_attention(cache, range_, layer: int, head: int, q: Tensor, k: Tensor, v: Tensor, rope) -> Tensor:
    """float64 [n, G, D] of one KV head, over kept tokens and the range's own."""
    tokens = slice(range_.start, range_.stop)
    keys, values = [], []
    for read in range_.reads:
        kept = cache.kept[read.chunk.id, layer][head]
        k_nD, v_nD, _ = read_head(cache, read.chunk, layer, head)
        keys.append(rotate(k_nD.unsqueeze(1), rope, read.first_token, layout="half")[kept, 0])
        values.append(v_nD[kept])
    keys.append(pairs_together(rotate(k[tokens], rope, range_.first_token), rope)[:, head])
    values.append(v[tokens, head].double())
    q_nGD = pairs_together(rotate(q[tokens], rope, range_.first_token), rope)[:, 2 * head : 2 * head + 2]
    return (cache.spec.scale * q_nGD @ torch.cat(keys).T).softmax(-1) @ torch.cat(values)


@pytest.mark.parametrize("rope", ROPES.values(), ids=map(str, ROPES))
@pytest.mark.parametrize("scorer", ["own", "ahead", "random"])
def test_evicted_tokens_are_not_seen(scorer: str, rope) -> None:
    cache = evicting(scorer)
    long, short = cache.open(Window(1, 2, positions="window"), 20), cache.open(Window(1, 2), 20)
    commit_all(cache, long, [20] * 5, 1, rope)
    commit_all(cache, short, [20], 2, rope)
    fresh = cache.open(Window(1, 2), 20)
    with cache.step([QueryRange(long), QueryRange(fresh), QueryRange(short, commit=True), QueryRange(long)]) as step:
        for layer in range(2):
            q, k, v = random_qkv(cache, 80, layer)
            out = step.attend(layer, q, k, v, rope)
            for range_ in step.plan.ranges:
                for head in range(2):
                    expected = masked_attention(cache, range_, layer, head, q, k, v, rope)
                    got = out[range_.start : range_.stop, 2 * head : 2 * head + 2]
                    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-5)
    for (_, layer), kept in cache.kept.items():
        assert kept.sum(-1).tolist() == list(COUNTS.counts_LH[layer])
    assert cache.bits == pytest.approx(16 * 30 / 80)
    cache.check()


def test_a_cache_that_keeps_everything_is_like_any_other() -> None:
    cache, rope = evicting("own", AdaKV(20)), ROPES["half"]
    stream = cache.open(Window(1, 2, positions="window"), 20)
    commit_all(cache, stream, [20] * 4, 1, rope)
    with cache.denoise([stream]) as step:
        q, k, v = random_qkv(cache, 20, 9)
        got = step.attend(0, q, k, v, rope).double()
        torch.testing.assert_close(got, expected_attention(cache, step, 0, q, k, v, rope), rtol=0, atol=1e-5)
    assert cache.bits == 16


@pytest.mark.parametrize("scorer", ["own", "ahead"])
def test_kept_tokens_have_the_most_attention(scorer: str) -> None:
    cache, rope = evicting(scorer, HeadCounts(((6, 6), (6, 6)))), ROPES["interleaved"]
    stream = cache.open(Window(0, 4), 20)
    commit_all(cache, stream, [20], 1, rope)
    with cache.commit([stream]) as step:
        for layer in range(2):
            q, k, v = random_qkv(cache, 20, layer)
            step.attend(layer, q, k, v, rope)
    first, second = stream.chunks()
    q, k, _ = random_qkv(cache, 20, 1)
    ahead = 20 if scorer == "ahead" else 0
    for head in range(2):
        old = rotate(read_head(cache, first, 1, head)[0].unsqueeze(1), rope, 0, layout="half")[:, 0]
        own, moved = (pairs_together(rotate(k, rope, 20 + shift), rope)[:, head] for shift in (0, 20))
        keys = [own, old[cache.kept[first.id, 1][head]], *([moved] if ahead else [])]
        q_nGD = pairs_together(rotate(q, rope, 20 + ahead), rope)[:, 2 * head : 2 * head + 2]
        paid = (cache.spec.scale * q_nGD @ torch.cat(keys).T).softmax(-1)[..., :20].mean((0, 1))
        assert set(cache.kept[second.id, 1][head].nonzero().flatten().tolist()) == set(paid.topk(6).indices.tolist())


def test_an_unknown_scorer_is_refused() -> None:
    with pytest.raises(ValueError, match="allowed are own, ahead, random"):
        evicting("magic")
