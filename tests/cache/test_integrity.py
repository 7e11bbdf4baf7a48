"""`check` finds what is broken on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.errors import IntegrityError
from pagedvid.paged_kv_cache import PagedKVCache
from tests.cache.patterns import attend_all

NUM_PAGES = 120


@pytest.fixture
def cache() -> PagedKVCache:
    """Two streams of three chunks, one of them a fork with one chunk of its own and a pin. In layer 1, only the newest
    chunk is kept."""
    codecs = StreamCodecs("int4", look_back=[(1, 0, 0, 1, False)])
    spec = CacheSpec(2, 1, 8, codecs=codecs, debug_checks=True)
    cache = PagedKVCache(spec, NUM_PAGES * spec.shape.page_bytes)
    stream = cache.open(Window(1, 2), 100)
    for serial in range(3):
        with cache.commit([stream]) as step:
            attend_all(cache, step, [serial])
    twin = cache.fork(stream)
    cache.pin(twin, 1)
    with cache.commit([twin]) as step:
        attend_all(cache, step, [9])
    cache.check()
    return cache


def chunk_of(cache: PagedKVCache, number: int, index: int):
    return cache.streams[number].history("cond").chunks[index]


def flip_a_key_bit(cache: PagedKVCache) -> None:
    cache.pool.records[chunk_of(cache, 0, 2).table.layer("keys", 1, (0, 1))[0, -1], 3] ^= 1


def flip_a_step_size_bit_of_a_value(cache: PagedKVCache) -> None:
    cache.pool.records[chunk_of(cache, 1, 3).table.layer("values", 0, (0, 1))[0, 0], -5] ^= 1


def name_a_page_twice(cache: PagedKVCache) -> None:
    chunk_of(cache, 0, 1).table.ids[0] = chunk_of(cache, 0, 2).table.ids[0]


def name_a_free_page(cache: PagedKVCache) -> None:
    chunk_of(cache, 0, 1).table.ids[0] = cache.pool.free_ids[0]


def name_a_page_that_does_not_exist(cache: PagedKVCache) -> None:
    chunk_of(cache, 0, 1).table.ids[0] = NUM_PAGES


def lose_a_page(cache: PagedKVCache) -> None:
    cache.pool.take(1)


def free_pages_that_are_in_use(cache: PagedKVCache) -> None:
    cache.pool.give_back(chunk_of(cache, 1, 3).table.ids)


def count_a_reference_too_many(cache: PagedKVCache) -> None:
    cache._ledger.retain(chunk_of(cache, 0, 1))


def count_a_reference_too_few(cache: PagedKVCache) -> None:
    cache._ledger.drop(chunk_of(cache, 0, 1))


def promise_too_much(cache: PagedKVCache) -> None:
    cache._budget.promised_pages += 1


def overspend(cache: PagedKVCache) -> None:
    stream = cache.streams[0]
    stream.peak_pages += NUM_PAGES
    cache._budget.promised_pages += NUM_PAGES


def hold_more_than_the_peak(cache: PagedKVCache) -> None:
    stream = cache.streams[0]
    less = stream.peak_pages - stream.held_pages + 1
    stream.peak_pages -= less
    cache._budget.promised_pages -= less


def count_a_table_too_many(cache: PagedKVCache) -> None:
    chunk = chunk_of(cache, 0, 2)
    cache._ledger.retain(chunk.thinned(chunk.codecs.without([(1, 0, 0)]), cache.shape))


def forget_to_let_go_of_a_head(cache: PagedKVCache) -> None:
    """The newest chunk of the first stream is older in the other one."""
    cache.streams[1].history("cond").chunks[2] = chunk_of(cache, 0, 2)
    cache._ledger.retain(chunk_of(cache, 0, 2))
    cache._ledger.drop(chunk_of(cache, 0, 2).thinned(cache.spec.codecs.stored(2, 1, Window(1, 2)), cache.shape))


def let_go_of_a_head_too_early(cache: PagedKVCache) -> None:
    history, chunk = cache.streams[0].history("cond"), chunk_of(cache, 0, 2)
    history.chunks[2] = chunk.thinned(chunk.codecs.without([(0, 0, 0)]), cache.shape)
    cache._ledger.retain(history.chunks[2])
    cache._ledger.drop(chunk)


def count_a_table_as_permanent(cache: PagedKVCache) -> None:
    """A second time, so that the budget stays as it is."""
    cache._ledger.make_permanent(cache.streams[0].permanent[0])


def forget_to_slide(cache: PagedKVCache) -> None:
    cache.streams[0].history("cond").num_committed += 1


def put_a_chunk_at_another_index(cache: PagedKVCache) -> None:
    history = cache.streams[0].history("cond")
    history.chunks[1], history.chunks[2] = history.chunks[2], history.chunks[1]


def forget_a_pin(cache: PagedKVCache) -> None:
    cache.streams[1].history("cond").pinned = frozenset()


def forget_a_sink(cache: PagedKVCache) -> None:
    stream = cache.streams[0]
    cache._ledger.make_temporary(stream.permanent[0])
    cache._budget.promised_pages += stream.permanent[0].num_pages
    stream.permanent = ()


def copy_a_chunk(cache: PagedKVCache) -> None:
    history = cache.streams[0].history("cond")
    history.chunks[2] = replace(history.chunks[2], id=999)


CORRUPTIONS: dict[Callable[[PagedKVCache], None], str] = {
    flip_a_key_bit: "I4: pages of chunk 3 were overwritten",
    flip_a_step_size_bit_of_a_value: "I4: pages of chunk 4 were overwritten",
    name_a_page_twice: "I1",
    name_a_free_page: "I1",
    name_a_page_that_does_not_exist: "I1",
    lose_a_page: "I1",
    free_pages_that_are_in_use: "I1",
    count_a_reference_too_many: "I2",
    count_a_reference_too_few: "I2",
    copy_a_chunk: "I1",
    count_a_table_too_many: "I2",
    forget_to_let_go_of_a_head: "I5: other heads hold chunk 2 of stream 1 cond than their windows keep",
    let_go_of_a_head_too_early: "I5: other heads hold chunk 2 of stream 0 cond than their windows keep",
    count_a_table_as_permanent: r"I6: streams hold permanently other tables of chunks \[1\]",
    promise_too_much: "I3: budget .* does not match the streams",
    overspend: f"I3: budget .* exceeds {NUM_PAGES} pages",
    hold_more_than_the_peak: "I3: stream 0 holds 16 > 15",
    forget_to_slide: r"I5: stream 0 cond keeps \[0, 1, 2\], not \[0, 2, 3\]",
    put_a_chunk_at_another_index: "I5: a chunk is kept under another index",
    forget_a_pin: r"I5: stream 1 cond keeps \[0, 1, 2, 3\], not \[0, 2, 3\]",
    forget_a_sink: "I6: permanent chunks of stream 0 are out of date",
}


@pytest.mark.parametrize("corrupt", CORRUPTIONS, ids=lambda corrupt: corrupt.__name__)
def test_check_finds(corrupt, cache):
    corrupt(cache)
    with pytest.raises(IntegrityError, match=CORRUPTIONS[corrupt]):
        cache.check()


def test_a_page_in_a_pending_chunk_and_in_a_live_one(cache):
    class Abandoned(Exception):
        pass

    with pytest.raises(Abandoned), cache.commit([cache.streams[0]]) as step:
        page = step.plan.pending[0].chunk.table.ids[0]
        step.plan.pending[0].chunk.table.ids[0] = chunk_of(cache, 1, 3).table.ids[0]
        with pytest.raises(IntegrityError, match="I1"):
            cache.check()
        step.plan.pending[0].chunk.table.ids[0] = page
        raise Abandoned
    cache.check()


def test_without_debug_checks_no_digest_is_kept():
    cache = PagedKVCache(CacheSpec(1, 1, 8), "16KiB")
    stream = cache.open(Window(0, 1), 10)
    with cache.commit([stream]) as step:
        attend_all(cache, step, [0])
    assert next(stream.chunks()).digests is None
    cache.pool.records ^= torch.tensor(1, dtype=torch.uint8)
    cache.check()


def test_dropping_a_reference_that_is_not_there_is_an_error(cache):
    chunk = chunk_of(cache, 1, 3)
    cache._ledger.drop(chunk)
    with pytest.raises(IntegrityError, match="no reference left to drop"):
        cache._ledger.drop(chunk)
