"""Caches whose heads are shared by 2 and by 3 gloo ranks, against one cache with all heads."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist

from pagedvid.cache.stream_image import StreamImage
from pagedvid.distributed.exchange import sent_bytes_of_split, sent_bytes_of_whole
from tests.distributed.ranks import on_ranks
from tests.distributed.stories import (
    ALIKE,
    CODECS,
    GROUP,
    HEAD_DIM,
    HEADS,
    LAYERS,
    Told,
    cache_of,
    cameras,
    corrections,
    life,
)

STORIES = [*CODECS, "cameras"]
TOLERANCE = 2e-5


def tell(name: str, splits: bool, shard: dist.ProcessGroup | None = None) -> Told:
    """A story on one rank, or on all of a group."""
    if name == "cameras":
        return cameras(cache_of(CODECS["int4/int2"], shard), splits=splits)
    return life(cache_of(CODECS[name], shard, debug_checks=True), splits=splits)


@pytest.fixture(scope="module", params=[2, 3])
def on_several(request):
    """(number of ranks, what every rank was told, by (story, whether tokens are split))."""
    jobs = {f"{name}, {splits}": partial(tell, name, splits) for name in STORIES for splits in (False, True)}
    return request.param, on_ranks(request.param, jobs)


@pytest.fixture(scope="module")
def on_one():
    return {name: tell(name, splits=False) for name in STORIES}


@pytest.mark.parametrize("name", STORIES)
def test_every_rank_that_computes_all_tokens_gets_what_one_rank_gets(on_several, on_one, name):
    _, told = on_several
    for of_rank in told[f"{name}, False"]:
        for out, expected in zip(of_rank.outputs, on_one[name].outputs, strict=True):
            torch.testing.assert_close(out, expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", STORIES)
def test_the_pieces_of_ranks_that_split_the_tokens_are_what_one_rank_gets(on_several, on_one, name):
    _, told = on_several
    pieces = zip(*(of_rank.outputs for of_rank in told[f"{name}, True"]), strict=True)
    for parts, expected in zip(pieces, on_one[name].outputs, strict=True):
        torch.testing.assert_close(torch.cat(parts, dim=-3), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ALIKE)
def test_every_pool_holds_its_share_to_the_page(on_several, on_one, name):
    num_ranks, told = on_several
    for of_rank in [*told[f"{name}, False"], *told[f"{name}, True"]]:
        assert [(num_ranks * reserved, num_ranks * used) for reserved, used in of_rank.pages] == on_one[name].pages


def test_pools_of_unequal_heads_hold_together_what_one_holds(on_several, on_one):
    _, told = on_several
    of_ranks = [of_rank.pages for of_rank in told["by head, False"]]
    together = [tuple(map(sum, zip(*step, strict=True))) for step in zip(*of_ranks, strict=True)]
    assert [used for _, used in together] == [used for _, used in on_one["by head"].pages]
    assert len({tuple(pages) for pages in of_ranks}) > 1


@pytest.mark.parametrize("name", STORIES)
def test_the_whole_image_is_that_of_one_rank(on_several, on_one, name):
    _, told = on_several
    for of_rank in [*told[f"{name}, False"], *told[f"{name}, True"]]:
        assert_same_image(of_rank.image, on_one[name].image)


def assert_same_image(image: StreamImage, expected: StreamImage) -> None:
    assert (image.shape, image.codecs, image.window) == (expected.shape, expected.codecs, expected.window)
    for name, branch in expected.branches.items():
        for mine, theirs in zip(image.branches[name].chunks, branch.chunks, strict=True):
            assert (mine.index, mine.position, mine.codecs) == (theirs.index, theirs.position, theirs.codecs)
            assert torch.equal(mine.records_PB, theirs.records_PB) and mine.digests == theirs.digests
            for a, b in corrections(mine, theirs):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["int4/int2", "cameras"])
def test_bytes_on_the_wire_are_those_of_the_formulas(on_several, on_one, name):
    num_ranks, told = on_several
    num_views = 2 if name == "cameras" else 1
    whole = split = 0
    for out in on_one[name].outputs:
        num_tokens = out.shape[-3]
        whole += num_views * sent_bytes_of_whole(num_tokens, num_ranks, HEADS * GROUP, HEAD_DIM, 4)
        one_view = sent_bytes_of_split(num_tokens, num_ranks, HEADS * GROUP, HEADS, HEAD_DIM, 4)
        further = (num_ranks - 1) * -(-num_tokens // num_ranks) * (HEADS * GROUP // num_ranks) * HEAD_DIM * 4
        split += one_view + (num_views - 1) * further
    num_calls = len(on_one[name].outputs)
    assert num_calls % LAYERS == 0
    assert {of_rank.sent for of_rank in told[f"{name}, False"]} == {(num_calls, whole)}
    assert {of_rank.sent for of_rank in told[f"{name}, True"]} == {(2 * num_calls, split)}
