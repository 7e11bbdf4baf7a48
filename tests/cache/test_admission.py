"""Exact admission: what is promised, what is refused, and that promises are kept."""

from __future__ import annotations

import itertools

import pytest

from pagedvid.cache.manager import CacheManager
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import peak_pages
from pagedvid.cache.window import Window
from pagedvid.codecs.registry import read_codec
from pagedvid.errors import CapacityError, ConfigError, ShapeError
from tests.cache.bookkeeping import commit, make_manager
from tests.cache.stream_simulation import Tables, form_of, simulated_peak

WINDOW = Window(sink_chunks=1, recent_chunks=2)
TOKENS = 100
"""Two int2 pages in a cache of one layer and one head, so a stream of WINDOW peaks at 8 pages."""


@pytest.mark.parametrize("chunk_tokens", [1, 17, 128, 129, 300, 880])
@pytest.mark.parametrize(
    "codecs",
    [
        StreamCodecs("fp32"),
        StreamCodecs("int2"),
        StreamCodecs("int2", sink="int8"),
        StreamCodecs("int2", newest="bf16"),
        StreamCodecs("int4", sink="bf16", newest="fp32"),
        StreamCodecs("bf16", newest="int2"),
        StreamCodecs("int4/int2"),
        StreamCodecs("int2/bf16", sink="bf16/int2", newest="int8"),
        StreamCodecs("int2", newest="int4/int2", layers=((0, 0, "int8"),)),
        StreamCodecs("int4", newest="int4", layers=((0, 1, "int2/int8"), (1, 1, "fp32/int2"))),
        StreamCodecs("int4", look_back=[(0, 0, 1, 1, False), (1, 1, 1, 2, False), (1, 2, 2, 1, True)]),
        StreamCodecs("int2", sink="fp32", newest="bf16", look_back=[(0, 0, 2, 1, False), (1, 0, 0, 2, False)]),
        StreamCodecs("int2", newest="int8", look_back=[(0, 0, 2, 1, False), (1, 0, 2, 1, False)]),
    ],
    ids=str,
)
def test_predicted_pages_are_allocated_and_never_exceeded(codecs, chunk_tokens):
    """I8, I5: a pool of exactly the predicted size is enough, and all of it is used at some time."""
    for sinks, recents, max_commits in itertools.product((0, 2), (1, 3), (1, 2, 4, None)):
        window = Window(sinks, recents)
        spec = CacheSpec(2, 3, 8, codecs=codecs)
        peak = 2 * peak_pages(spec.shape, window, codecs, chunk_tokens, max_commits)
        num_commits = 12 if max_commits is None else max_commits
        assert peak == 2 * simulated_peak(Tables(2, 3), window, codecs, chunk_tokens, num_commits)
        manager = CacheManager(spec, peak * spec.shape.page_bytes, device="meta")
        stream = manager.open(window, chunk_tokens, branches=("cond", "uncond"), max_chunks=max_commits)
        assert manager.reserved_pages == peak == stream.peak_pages
        for _ in range(12 if max_commits is None else max_commits):
            commit(manager, *(QueryRange(stream, branch, commit=True) for branch in ("cond", "uncond")))
        assert manager.pool.peak_used_pages == peak


@pytest.mark.parametrize("codec", ["fp32", "bf16", "int8", "int4", "int2", "int8/int2", "fp32/int4"])
@pytest.mark.parametrize("num_tokens", [1, 17, 128, 129, 300, 880])
def test_waste_is_less_than_one_page_per_table(num_tokens, codec):
    """I9; and the statistics count bytes as sizes.py does."""
    manager = CacheManager(CacheSpec(2, 3, 8, codecs=StreamCodecs(codec)), "2MiB", device="meta")
    stream = manager.open(WINDOW, 880)
    commit(manager, QueryRange(stream, num_tokens=num_tokens, commit=True))
    stats = manager.stats()
    assert stats.pages_used == Tables(2, 3).chunk_pages(num_tokens, form_of(codec))
    assert 0 <= stats.padding_waste_ratio * stats.pages_used < 12
    factors = 4 * 6 if codec.startswith("int") else 0
    assert stats.stored_bytes == stats.pages_used * stats.page_bytes + factors
    assert stats.page_bytes == 36 * 8
    assert stats.bf16_bytes == num_tokens * 6 * 8 * 2 * 2
    assert (stats.num_chunks, stats.num_streams, stats.num_shared_chunks) == (1, 1, 0)


def test_open_is_refused_with_the_numbers_and_takes_nothing():
    manager = make_manager(22)
    streams = [manager.open(WINDOW, TOKENS) for _ in range(2)]
    with pytest.raises(
        CapacityError, match=r"1 sink \+ 2 recent \+ 1 current chunks x 100 tokens x 1 branches .*needs 8 pages; "
        r"16 of 22 are reserved, 6 are left"
    ):  # fmt: skip
        manager.open(WINDOW, TOKENS)
    assert manager.reserved_pages == 16 and manager.streams == tuple(streams)
    manager.check()
    assert manager.fits(6) and not manager.fits(7)
    manager.open(Window(0, 2), TOKENS)
    manager.check()


def test_a_promise_counts_before_any_page_is_taken():
    manager = make_manager(16)
    manager.open(WINDOW, TOKENS), manager.open(WINDOW, TOKENS)
    assert manager.stats().pages_used == 0 and manager.stats().pages_reserved == 16
    with pytest.raises(CapacityError):
        manager.open(Window(0, 1), 1)


def test_a_short_video_reserves_only_what_it_can_hold():
    manager = make_manager(8)
    assert [manager.open(Window(1, 6), TOKENS, max_chunks=n).peak_pages for n in (0, 1, 3)] == [0, 2, 6]
    assert manager.reserved_pages == 8


def test_streams_may_differ_in_chunk_size_window_branches_and_codec():
    manager = make_manager(200)
    a = manager.open(Window(0, 1), 880, codecs=StreamCodecs("int8"))
    b = manager.open(Window(2, 2), 17, branches=("cond", "uncond"), codecs=StreamCodecs("int2", newest="fp32"))
    assert a.peak_pages == 2 * 2 * 28
    assert b.peak_pages == 2 * 2 * (1 + 1 + 1 + 2 + 1 + 2)  # two sinks, recent, newest, its int2 form, current
    for _ in range(6):
        commit(manager, a, *(QueryRange(b, branch, commit=True) for branch in b.branches))
    assert {str(chunk.codecs) for chunk in a.chunks()} == {"int8"}
    assert [str(chunk.codecs) for chunk in b.chunks()] == ["int2", "int2", "int2", "fp32"] * 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"branches": ()}, "at least one"),
        ({"branches": ("a", "a")}, "no name twice"),
        ({"max_chunks": -1}, "max_chunks is -1; it must be at least 0"),
    ],
)
def test_impossible_streams_are_refused(arguments, message):
    with pytest.raises(ShapeError, match=message):
        make_manager(10).open(**{"window": WINDOW, "chunk_tokens": TOKENS, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_query_heads": 5}, "num_query_heads is 5; it must be a multiple of num_kv_heads 2"),
        ({"num_query_heads": 0}, "num_query_heads is 0"),
        ({"correction": "on"}, "correction is 'on'; allowed are off, formula, variance, measured"),
        ({"keys_arrive": "late"}, "keys_arrive is 'late'; allowed are before_rotary, rotated"),
        ({"num_kv_heads": 0}, "num_kv_heads is 0"),
        ({"page_rows": -1}, "page_rows is -1; it must be at least 1"),
        ({"page_rows": 4}, "a page of 4 rows holds no token of int2; raise page_rows"),
        ({"tokens_per_frame": 0}, "tokens_per_frame is 0"),
        ({"codecs": StreamCodecs("token2-g16")}, "token2-g16 needs a head_dim that is a multiple of 16; it is 8"),
        ({"codecs": StreamCodecs("int2", sink="fp32"), "page_rows": 3}, "a page of 3 rows holds no token of int2"),
        ({"codecs": StreamCodecs(layers=((0, 1, "int8"),))}, "given for layer 1; the layers are 0 to 0"),
        (
            {"codecs": StreamCodecs("klt2"), "correction": "formula"},
            'klt2 keys have no step size for correction "formula"; use "variance"',
        ),
        ({"codecs": StreamCodecs("int2", sink="klt2/int2"), "correction": "formula"}, "klt2 keys have no step size"),
    ],
)
def test_impossible_specs_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        CacheSpec(**{"num_layers": 1, "num_kv_heads": 2, "head_dim": 8, **arguments})


def test_memory_is_given_in_bytes_or_text():
    spec = CacheSpec(1, 1, 8)
    assert CacheManager(spec, "1MiB", device="meta").pool.num_pages == 2**20 // 288
    assert CacheManager(spec, 288, device="meta").pool.num_pages == 1
    with pytest.raises(CapacityError, match="holds no page; one needs 288 bytes"):
        CacheManager(spec, 287)


def test_pages_suit_the_keys_of_the_history_unless_their_rows_are_given():
    def page_bytes(history: str, page_rows: int | None = None) -> int:
        return CacheSpec(1, 1, 8, codecs=StreamCodecs(history, sink="bf16"), page_rows=page_rows).shape.page_bytes

    assert [page_bytes(history) for history in ("int2", "bf16", "klt2", "klt1.5/int2", "int2/klt2")] == [
        8 * rows for rows in (36, 36, 32, 24, 36)
    ]
    assert page_bytes("klt2", 36) == page_bytes("int2") == 288
    manager = CacheManager(CacheSpec(1, 1, 8, page_rows=8), 10 * 64, device="meta")
    assert manager.pool.num_pages == 10
    stream = manager.open(Window(0, 1), 16, max_chunks=1)  # 4 rows of 4 tokens each are left for int2
    assert stream.peak_pages == 2


def test_codecs_that_the_cache_cannot_have_are_refused_when_a_stream_opens():
    manager = make_manager(20)
    for codecs, message in (
        (StreamCodecs(layers=((1, 1, "int8"),)), "given for layer 1; the layers are 0 to 0"),
        (StreamCodecs("int2", newest="hadamard2-g64"), "hadamard2-g64 needs a head_dim that is a multiple of 64"),
    ):
        with pytest.raises(ConfigError, match=message):
            manager.open(WINDOW, TOKENS, codecs=codecs)
    assert manager.streams == () and manager.reserved_pages == 0


def test_a_klt_stream_is_promised_whole_blocks_of_its_frames():
    """Frames of 10 tokens, 4 transformed together: a page of 32 rows holds 32 blocks, a chunk of 8 frames 20."""
    codecs = StreamCodecs("klt2", newest="bf16")
    spec = CacheSpec(1, 1, 8, codecs=codecs, tokens_per_frame=10, frames_per_block=4)
    assert spec.shape.page_rows == 32
    tables = Tables(1, 1, {"klt2": 128, "bf16": 16}, tokens_per_frame=10, frames_per_block=4)
    for num_tokens, num_pages in ((1, 1), (80, 1), (120, 1), (130, 2), (240, 2), (280, 3)):
        assert (
            tables.table_pages(num_tokens, "klt2")
            == read_codec("klt2").num_pages(spec.shape.page, num_tokens)
            == num_pages
        )
        peak = simulated_peak(tables, WINDOW, codecs, num_tokens, 12)
        manager = CacheManager(spec, peak * spec.shape.page_bytes, device="meta")
        stream = manager.open(WINDOW, num_tokens)
        for _ in range(6):
            commit(manager, stream)
        assert stream.peak_pages == manager.pool.peak_used_pages == peak
