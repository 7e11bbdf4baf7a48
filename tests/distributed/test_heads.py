"""A rank's heads: specs, codecs, tables and images, cut and put together again. Integers and bytes; no processes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.distributed.heads import HeadShard, join_chunk_codecs, join_codecs
from pagedvid.distributed.images import join_images, part_of_image
from pagedvid.errors import ConfigError
from tests.distributed.stories import ALIKE, BY_HEAD, CODECS, HEADS, LAYERS, cache_of, calibration, corrections, life

CODEC_NAMES = ("int2", "int4", "bf16", "int8/int2", None)
exceptions = st.lists(
    st.tuples(st.integers(0, LAYERS - 1), st.integers(0, HEADS - 1), st.integers(0, HEADS - 1), st.integers(0, 4)),
    max_size=8,
).map(lambda given: [(layer, min(a, b), max(a, b), CODEC_NAMES[n]) for layer, a, b, n in given])


def shards(num_ranks: int) -> list[HeadShard]:
    return [HeadShard.of_rank(rank, num_ranks, HEADS) for rank in range(num_ranks)]


@given(exceptions, st.sampled_from([1, 2, 3, 6]))
def test_every_head_is_stored_on_its_rank_as_it_was_asked_for(heads, num_ranks):
    whole = ChunkCodecs.read("int4/int2", {1: "int8"}, heads)
    parts = [shard.of_chunk_codecs(whole) for shard in shards(num_ranks)]
    own = HEADS // num_ranks
    for layer in range(LAYERS):
        for head in range(HEADS):
            assert parts[head // own].at(layer, head % own) == whole.at(layer, head)
    assert join_chunk_codecs(parts, own) == whole


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 6])
@pytest.mark.parametrize("codecs", [BY_HEAD, CODECS["recoded"], ALIKE["int4/int2"]], ids=["by head", "recoded", "int"])
def test_codecs_of_streams_are_joined_as_they_were(codecs, num_ranks):
    assert join_codecs([shard.of_codecs(codecs) for shard in shards(num_ranks)], HEADS // num_ranks) == codecs


def test_windows_go_with_their_heads():
    first, second = (shard.of_codecs(BY_HEAD).look_back for shard in shards(2))
    assert first == ((0, 2, 2, 1, False), (1, 0, 2, 1, True))
    assert second == ((0, 0, 1, 1, False),)


@pytest.mark.parametrize("num_ranks", [2, 3, 6])
def test_a_spec_of_alike_heads_needs_an_equal_share_of_pages(num_ranks):
    whole = CacheSpec(LAYERS, HEADS, 32, num_query_heads=12, codecs=StreamCodecs("klt2"), tokens_per_frame=5)
    own = HeadShard.of_rank(1, num_ranks, HEADS).of_spec(whole)
    assert (own.num_kv_heads, own.query_heads) == (HEADS // num_ranks, 12 // num_ranks)
    assert own.shape.page == whole.shape.page and own.correction == whole.correction
    pages = own.shape.chunk_pages(25, own.codecs.steady)
    assert num_ranks * pages == whole.shape.chunk_pages(25, whole.codecs.steady)


@pytest.mark.parametrize("num_ranks", [4, 5, 12])
def test_uneven_shares_are_refused_with_the_allowed_numbers(num_ranks):
    with pytest.raises(ConfigError, match=r"6 KV heads evenly; the number of ranks can be 1, 2, 3, 6$"):
        HeadShard.of_rank(0, num_ranks, HEADS)


def test_a_correction_by_runs_of_pages_of_all_heads_is_refused():
    spec = CacheSpec(LAYERS, HEADS, 32, correction_unit="page")
    with pytest.raises(ConfigError, match=r'all its heads together.*Use "chunk"'):
        HeadShard.of_rank(0, 2, HEADS).of_spec(spec)
    assert HeadShard.of_rank(0, 1, HEADS).of_spec(spec).correction_unit == "page"


def test_tables_go_with_their_heads_and_bits_are_allocated_alike():
    whole = calibration()
    for shard in shards(3):
        own = shard.of_calibration(whole)
        for kind in ("keys", "values"):
            mine, all_heads = own.tables(kind, 1), whole.tables(kind, 1)
            assert torch.equal(mine.spectrum_N, all_heads.spectrum_N)
            assert torch.equal(mine.mean_hD, all_heads.mean_hD[shard.first : shard.end])
            assert torch.equal(mine.order_hN, all_heads.order_hN[shard.first : shard.end])


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 6])
@pytest.mark.parametrize("name", ["int4/int2", "klt2", "recoded", "by head"])
def test_an_image_is_joined_from_its_parts_bit_for_bit(name, num_ranks):
    image = life(cache_of(CODECS[name], debug_checks=True)).image
    parts = [part_of_image(image, shard) for shard in shards(num_ranks)]
    assert sum(part.num_pages for part in parts) == image.num_pages
    joined = join_images(parts)
    assert (joined.shape, joined.codecs) == (image.shape, image.codecs)
    for mine, theirs in zip(joined.branches["cond"].chunks, image.branches["cond"].chunks, strict=True):
        assert torch.equal(mine.records_PB, theirs.records_PB)
        assert (mine.codecs, mine.digests, mine.runs) == (theirs.codecs, theirs.digests, theirs.runs)
        for a, b in corrections(mine, theirs):
            assert torch.equal(a, b)
