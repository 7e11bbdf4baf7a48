"""The integers: page sizes by hand, peaks against a simulated stream, what may never get worse."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import (
    full_window_bytes,
    peak_pages,
    planned_peak_pages,
    stream_bytes,
    window_bits_per_value,
)
from pagedvid.cache.window import Commit, Window, planned_peak_tokens
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.errors import ConfigError
from tests.cache.stream_simulation import (
    PAGE_TOKENS,
    Tables,
    first_form,
    form_of,
    head_codecs,
    is_kept,
    settled_form,
    simulated_peak,
    thin_form,
)

CODECS = tuple(PAGE_TOKENS)
BITS = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4, "int2": 2}
AWKWARD_TOKENS = (1, 17, 18, 19, 127, 128, 129, 300, 880, 1560, 4680)

tokens = st.integers(1, 5000)
codec_names = st.sampled_from(CODECS)
written_codecs = codec_names | st.builds("{}/{}".format, codec_names, codec_names)
windows = st.builds(Window, st.integers(0, 3), st.integers(1, 5))
exceptions = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 2), written_codecs), max_size=2).map(tuple)
look_backs = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 1), st.integers(1, 2), st.integers(1, 6), st.booleans()), max_size=4
)
stream_codecs = st.builds(
    StreamCodecs, written_codecs, st.none() | written_codecs, st.none() | written_codecs, exceptions, look_backs
)

INT2 = ChunkCodecs.read("int2")


def test_pages_in_memory_counts_single_pages():
    assert KVShape(1, 1, 64).page_bytes == 36 * 64
    assert KVShape(1, 1, 64).pages_in_memory(36 * 64) == 1
    assert KVShape(1, 1, 64).pages_in_memory(36 * 64 - 1) == 0
    assert KVShape(30, 12, 128).pages_in_memory(2**30) == 2**30 // (36 * 128)
    assert KVShape(1, 1, 64, page_rows=32).pages_in_memory(2**20) == 2**20 // (32 * 64)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
def test_padding_is_what_the_tokens_leave_free(num_tokens, codec):
    pages = -(-num_tokens // PAGE_TOKENS[codec])
    room = pages * PAGE_TOKENS[codec]
    shape, codecs = KVShape(2, 3, 8), ChunkCodecs.read(codec)
    assert shape.chunk_pages(num_tokens, codecs) == 2 * 2 * 3 * pages
    assert shape.padding_waste_ratio(num_tokens, codecs) == pytest.approx((room - num_tokens) / room)
    assert 0 <= shape.padding_pages(num_tokens, codecs) < 2 * 2 * 3


def test_padding_counts_pages_whatever_they_hold():
    """129 tokens leave 31/32 of the last int8 page and 127/128 of the last int2 page free: of 5 + 2 pages."""
    shape = KVShape(2, 3, 8)
    assert shape.padding_pages(129, ChunkCodecs.read("int8/int2")) == pytest.approx(6 * (31 / 32 + 127 / 128))
    assert shape.padding_waste_ratio(129, ChunkCodecs.read("int8/int2")) == pytest.approx((31 / 32 + 127 / 128) / 7)


def test_wan_chunk_by_hand():
    """4680 tokens of 30 layers x 12 heads x 128 in int2: 37 pages per table, the last with 72 of 128 tokens."""
    shape = KVShape(30, 12, 128)
    assert shape.num_tables == 360
    assert shape.chunk_pages(4680, INT2) == 2 * 360 * 37
    assert shape.stored_bytes(4680, INT2) == 360 * (37 * 2 * 36 * 128 + 4)
    assert shape.bf16_bytes(4680) == 4680 * 360 * 128 * 2 * 2
    assert shape.bits_per_value(4680, INT2) == pytest.approx(2.277, abs=1e-3)
    bf16 = ChunkCodecs.read("bf16")
    assert shape.stored_bytes(4680, bf16) == 360 * 260 * 2 * 36 * 128  # no factor where nothing is corrected


def test_mixed_wan_chunk_by_hand():
    """Keys in int4 (74 pages), values in int2 (37); the first two layers in BF16 (260), keys of the last in fp32."""
    shape = KVShape(30, 12, 128)
    codecs = ChunkCodecs.read("int4/int2", ((0, 1, "bf16"), (29, 29, "fp32/int2")))
    pages = [520, 520, *[74 + 37] * 27, 520 + 37]
    assert shape.chunk_pages(4680, codecs) == 12 * sum(pages)
    assert shape.stored_bytes(4680, codecs) == 12 * (sum(pages) * 36 * 128 + 30 * 4)  # factors of all layers
    tables = shape.table_pages(4680, codecs)
    assert len(tables) == 2 * 360 and sum(tables) == 12 * sum(pages)
    assert tables[:12] == (260,) * 12 and tables[24:36] == (74,) * 12 and tables[348:360] == (520,) * 12  # keys
    assert tables[360:372] == (260,) * 12 and tables[384:396] == (37,) * 12 == tables[-12:]  # values


def test_klt_wan_chunk_by_hand():
    """3 frames of 1560 tokens, transformed together: 1560 blocks; a page of 32 rows holds 43 of them in 2 bits."""
    shape = KVShape(30, 12, 128).with_pages_for(StreamCodecs("klt2")).with_frames(1560, 3)
    assert (shape.page_rows, shape.frames_per_block, shape.page_bytes) == (32, 3, 32 * 128)
    klt = ChunkCodecs.read("klt2")
    assert shape.chunk_pages(4680, klt) == 2 * 360 * 37
    assert shape.stored_bytes(4680, klt) == 360 * 2 * 37 * 32 * 128  # its keys are not corrected
    assert shape.bits_per_value(4680, klt) == pytest.approx(2.024, abs=1e-3)
    assert shape.padding_pages(4680, klt) == pytest.approx(2 * 360 * (37 - 4680 / 129))


@pytest.mark.parametrize(
    ("written", "table_bytes"),
    [
        ("bf16", {"off": 0, "formula": 0, "variance": 0, "measured": 0}),
        ("bf16/int2", {"off": 0, "formula": 0, "variance": 0, "measured": 0}),
        ("int2", {"off": 0, "formula": 0, "variance": 2 * 64, "measured": 4}),
        ("token2-g64/bf16", {"off": 0, "formula": 0, "variance": 2 * 64, "measured": 4}),
        ("klt2/int2", {"off": 0, "variance": 2 * 64, "measured": 4 + 2 * 64}),
    ],
)
def test_what_a_chunk_keeps_for_the_correction_of_its_keys(written, table_bytes):
    codecs = ChunkCodecs.read(written)
    for correction, expected in table_bytes.items():
        shape = KVShape(2, 3, 64, correction=correction)
        assert shape.correction_bytes(codecs) == 2 * 3 * expected, correction
        pages = shape.page_bytes * shape.chunk_pages(100, codecs)
        assert shape.stored_bytes(100, codecs) == pages + 2 * 3 * expected


@given(st.integers(1, 3), tokens, written_codecs, exceptions)
def test_pages_of_a_chunk_are_those_of_its_tables(num_heads, num_tokens, written, layers):
    shape, codecs = KVShape(3, num_heads, 8), ChunkCodecs.read(written, layers)
    pages = shape.table_pages(num_tokens, codecs)
    assert len(pages) == 2 * shape.num_tables
    assert shape.chunk_pages(num_tokens, codecs) == sum(pages)
    assert sum(pages) == Tables(3, num_heads).chunk_pages(num_tokens, form_of(written, layers))


head_exceptions = st.lists(
    st.tuples(st.integers(0, 2), st.integers(0, 1), st.integers(1, 2), st.none() | written_codecs), max_size=4
)


@given(tokens, written_codecs, exceptions, head_exceptions)
def test_tables_of_heads_are_as_long_as_their_codecs_want(num_tokens, written, layers, heads):
    shape, codecs = KVShape(3, 3, 8), ChunkCodecs.read(written, layers, heads)
    pages, tables = shape.table_pages(num_tokens, codecs), Tables(3, 3)
    names = [head_codecs(form_of(codecs), layer, head) for layer in range(3) for head in range(3)]
    assert pages == tuple(
        tables.table_pages(num_tokens, pair[kind]) if pair else 0 for kind in (0, 1) for pair in names
    )
    assert shape.table_bounds(num_tokens, codecs).tolist() == [sum(pages[:end]) for end in range(len(pages) + 1)]
    assert shape.chunk_pages(num_tokens, codecs) == sum(pages) == tables.chunk_pages(num_tokens, form_of(codecs))
    assert 0 <= shape.padding_pages(num_tokens, codecs) <= len(pages)


def test_a_chunk_of_which_no_head_keeps_anything():
    shape, nothing = KVShape(1, 2, 8), ChunkCodecs.read("int2", heads=[(0, 0, 1, None)])
    assert shape.chunk_pages(100, nothing) == shape.padding_waste_ratio(100, nothing) == 0
    assert shape.stored_bytes(100, nothing) == 0 and not shape.keeps_alpha(nothing)
    assert peak_pages(shape, Window(1, 2), StreamCodecs(nothing), 100) == 0


def test_peak_pages_of_codecs_by_head_against_a_simulated_stream():
    shape, tables = KVShape(2, 3, 8), Tables(2, 3)
    by_head = ChunkCodecs.read("int2", heads=[(0, 0, 0, "int8"), (0, 1, 2, None), (1, 2, 2, "bf16/int4")])
    sink = ChunkCodecs.read("int4", heads=[(1, 0, 1, None)])
    for history, first, newest in itertools.product(("int2", by_head), (None, sink), (None, "bf16")):
        codecs = StreamCodecs(history, first, newest)
        for window, commits in itertools.product((Window(0, 1), Window(1, 2), Window(2, 3)), (1, 2, 3, 5, 8, None)):
            expected = simulated_peak(tables, window, codecs, 129, 25 if commits is None else commits)
            assert peak_pages(shape, window, codecs, 129, commits) == expected


@pytest.mark.parametrize("sink_chunks", [1, 3])
@pytest.mark.parametrize("newest", [None, "int8"])
def test_peaks_when_heads_let_go_of_large_sinks_before_the_window_is_full(sink_chunks, newest):
    """The stream then holds most long before it ends: where a sum of rising and falling numbers changes direction."""
    shape, tables, window = KVShape(1, 3, 8), Tables(1, 3), Window(sink_chunks, 12)
    for first, second in itertools.product(range(1, 12, 2), repeat=2):
        look_back = [(0, 0, 0, first, False), (0, 1, 1, second, False), (0, 2, 2, 1, True)]
        codecs = StreamCodecs("int2", sink="fp32", newest=newest, look_back=look_back)
        for commits in (3, 6, 9, None):
            expected = simulated_peak(tables, window, codecs, 129, 20 if commits is None else commits)
            assert peak_pages(shape, window, codecs, 129, commits) == expected, (first, second, commits)


def test_newest_must_keep_what_is_kept_later():
    def by_head(*heads):
        return ChunkCodecs.read("int2", heads=[(1, first, last, None) for first, last in heads])

    StreamCodecs(by_head((0, 2)), newest=by_head((1, 2)), sink=by_head((1, 3)))
    for later in ({"history": "int4"}, {"history": by_head((0, 3)), "sink": by_head((0, 1))}):
        with pytest.raises(ConfigError, match="newest keeps nothing in layer 1, heads 1 to 2, of chunks"):
            StreamCodecs(**later, newest=by_head((1, 2)))
    with pytest.raises(ConfigError, match="has its own; give them there"):
        StreamCodecs(by_head((0, 1)), layers={0: "int8"})


@pytest.mark.parametrize("codec", CODECS)
def test_bits_per_value_approach_the_codec_and_its_metadata(codec):
    full_page_bits = PAGE_TOKENS[codec] * BITS[codec] + (32 if codec.startswith("int") else 0)
    expected = full_page_bits / PAGE_TOKENS[codec]
    num_tokens = 1000 * PAGE_TOKENS[codec]
    assert KVShape(1, 1, 64).bits_per_value(num_tokens, ChunkCodecs.read(codec)) == pytest.approx(expected, rel=1e-4)


def test_bits_of_keys_and_values_are_averaged():
    def bits(written: str) -> float:
        return KVShape(2, 2, 64, correction="off").bits_per_value(128_000, ChunkCodecs.read(written))

    assert bits("int4/int2") == bits("int2/int4") == pytest.approx((bits("int4") + bits("int2")) / 2)


@pytest.mark.parametrize(
    "field", ["num_layers", "num_kv_heads", "head_dim", "page_rows", "tokens_per_frame", "frames_per_block"]
)
def test_impossible_shapes_are_refused(field):
    sizes = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 8}
    with pytest.raises(ConfigError, match=rf"{field} is 0.*at least 1"):
        KVShape(**{**sizes, field: 0})
    with pytest.raises(ConfigError, match=r"head_dim is 7.*even"):
        KVShape(2, 2, 7)


def test_window_keeps_sinks_and_recent_chunks():
    window = Window(sink_chunks=1, recent_chunks=2)
    assert [window.live(n) for n in range(7)] == [
        (),
        (0,),
        (0, 1),
        (0, 1, 2),
        (0, 2, 3),
        (0, 3, 4),
        (0, 4, 5),
    ]
    assert Window(0, 1).live(5) == (4,)
    assert Window(3, 1).live(2) == (0, 1)


@given(windows, st.integers(0, 30))
def test_live_chunks_are_the_first_and_the_last(window, num_committed):
    live = window.live(num_committed)
    assert list(live) == sorted(set(live))
    assert set(live) == {
        i for i in range(num_committed) if i < window.sink_chunks or i >= num_committed - window.recent_chunks
    }
    assert len(live) == min(num_committed, window.max_chunks)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 1), "sink_chunks is -1"),
        ((1, 0), "recent_chunks is 0"),
        ((1, 1, "relative"), "positions is 'relative'; allowed are absolute, window, given"),
    ],
)
def test_impossible_windows_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Window(*arguments)


@pytest.mark.parametrize("name", ["history", "sink", "newest"])
def test_unknown_codecs_are_refused_by_the_name_of_the_setting(name):
    with pytest.raises(ConfigError, match=f"{name} codec: unknown codec 'int3'; allowed are fp32, bf16, int8, int4"):
        StreamCodecs(**{name: "int3"})
    with pytest.raises(ConfigError, match=f"{name} codec: unknown codec 'x'"):
        StreamCodecs(**{name: "int4/x"})


def test_sinks_and_the_newest_chunk_have_their_own_codecs():
    window = Window(1, 2)
    codecs = StreamCodecs("int2", sink="int8", newest="bf16")
    assert [str(codecs.final(i, window)) for i in range(3)] == ["int8", "int2", "int2"]
    assert [str(codecs.at_commit(i, window)) for i in range(3)] == ["bf16"] * 3
    assert all(codecs.recodes(i, window) for i in range(3))
    assert str(StreamCodecs("int2", sink="int8").at_commit(0, window)) == "int8"
    assert not StreamCodecs("int2", sink="int8").recodes(0, window)
    # With one recent chunk, the newest one leaves when the next is committed: only sinks are written again.
    assert [codecs.recodes(i, Window(1, 1)) for i in range(3)] == [True, False, False]


def test_exceptions_by_layer_hold_for_the_history_and_for_sinks_that_follow_it():
    window, layers = Window(1, 2), ((0, 0, "int8"),)
    follows = StreamCodecs("int4/int2", newest="bf16", layers=layers)
    assert follows.final(0, window) == follows.final(1, window) == ChunkCodecs.read("int4/int2", layers)
    assert follows.at_commit(1, window) == ChunkCodecs.read("bf16")
    apart = StreamCodecs("int2", sink="int4", layers=layers)
    assert apart.final(0, window) == ChunkCodecs.read("int4")
    assert apart.at_commit(1, window) == apart.steady == ChunkCodecs.read("int2", layers)
    assert set(apart.all()) == {apart.final(0, window), apart.steady}
    # Codecs that differ in one layer only: the chunk is written again.
    assert StreamCodecs("int2", newest="int2", layers=layers).recodes(1, window)
    assert not StreamCodecs("int2", newest="int2/int2").recodes(1, window)


@pytest.mark.parametrize(("history", "rows"), [("int2", 36), ("klt2", 32), ("klt1.5/int4", 24), ("int4/klt2", 36)])
def test_pages_suit_the_keys_of_the_history(history, rows):
    assert StreamCodecs(history, sink="klt4").page_rows == rows
    assert KVShape(1, 1, 8).with_pages_for(StreamCodecs(history)).page_bytes == 8 * rows


@pytest.mark.parametrize("sink_chunks", [0, 1, 3])
@pytest.mark.parametrize("recent_chunks", [1, 2, 4])
def test_peak_pages_against_a_simulated_stream(sink_chunks, recent_chunks):
    window = Window(sink_chunks, recent_chunks)
    shape, tables = KVShape(2, 3, 8), Tables(2, 3)
    names: tuple[str | None, ...] = (None, "int2", "int8", "bf16/int2", "fp32")
    for history, sink, newest in itertools.product(("int2", "int8/int4", "bf16"), names, names):
        codecs = StreamCodecs(history, sink, newest)
        for chunk_tokens in (1, 129, 300):
            for max_commits in (0, 1, 2, 3, 5, 8, None):
                num_commits = 25 if max_commits is None else max_commits
                expected = simulated_peak(tables, window, codecs, chunk_tokens, num_commits)
                predicted = peak_pages(shape, window, codecs, chunk_tokens, max_commits)
                assert predicted == expected, (codecs, chunk_tokens, max_commits)


@given(windows, stream_codecs, tokens, st.integers(0, 12) | st.none())
def test_peak_pages_against_a_simulated_stream_anywhere(window, codecs, chunk_tokens, max_commits):
    num_commits = 30 if max_commits is None else max_commits
    expected = simulated_peak(Tables(2, 3), window, codecs, chunk_tokens, num_commits)
    assert peak_pages(KVShape(2, 3, 2), window, codecs, chunk_tokens, max_commits) == expected


@given(windows, st.integers(1, 12), st.sampled_from([4, 2, 1]), st.integers(0, 12) | st.none(), st.data())
def test_peak_pages_of_klt_streams(window, num_frames, frames_per_block, max_commits, data):
    """Frames of 30 tokens, on pages of 36 rows: 144 tokens in 2 bits, 192 in 1.5 bits."""
    names = st.sampled_from(["klt2", "klt1.5/klt2", "klt2/int4", "int8"])
    codecs = StreamCodecs(data.draw(names), data.draw(st.none() | names), data.draw(st.none() | names))
    shape = KVShape(2, 3, 8, tokens_per_frame=30, frames_per_block=frames_per_block)
    tables = Tables(2, 3, {**PAGE_TOKENS, "klt2": 144, "klt1.5": 192}, 30, frames_per_block)
    num_commits = 30 if max_commits is None else max_commits
    expected = simulated_peak(tables, window, codecs, 30 * num_frames, num_commits)
    assert peak_pages(shape, window, codecs, 30 * num_frames, max_commits) == expected


@given(windows, stream_codecs, tokens, st.integers(0, 12))
def test_a_plan_that_drops_nothing_needs_what_the_window_keeps(window, codecs, chunk_tokens, num_commits):
    shape, plan = KVShape(2, 3, 8), [Commit(chunk_tokens)] * num_commits
    expected = peak_pages(shape, window, codecs, chunk_tokens, num_commits)
    assert planned_peak_pages(shape, window, codecs, plan) == expected


def test_a_plan_counts_what_is_held_while_a_chunk_is_written():
    """int2 pages hold 128 tokens, so chunks of 128, 300 and 10 tokens take 1, 3 and 1 pages of keys, and of values."""
    shape, window = KVShape(1, 1, 8), Window(0, 100)

    def peak(*plan: Commit, newest: str | None = None) -> int:
        return planned_peak_pages(shape, window, StreamCodecs("int2", newest=newest), plan)

    assert peak() == 0
    assert peak(Commit(128), Commit(300), Commit(10)) == 2 * 5
    assert peak(Commit(128), Commit(300, drops=(0,)), Commit(10, drops=(1,))) == 2 * 3
    assert peak(Commit(128), Commit(300), Commit(10, drops=(0, 1))) == 2 * 4
    # The newest chunk, bf16 (18 tokens a page), is written again with the next commit, unless it is dropped first.
    assert peak(Commit(36), Commit(18), newest="bf16") == 2 * (2 + 1 + 1)
    assert peak(Commit(36), Commit(18, drops=(0,)), newest="bf16") == 2 * 2


@given(windows, tokens, st.integers(0, 12))
def test_tokens_held_at_the_peak(window, chunk_tokens, num_commits):
    most = max((sum(is_kept(window, i, n) for i in range(n)) + 1 for n in range(num_commits)), default=0)
    assert planned_peak_tokens(window, [Commit(chunk_tokens)] * num_commits) == most * chunk_tokens


@given(windows, st.integers(0, 30), st.integers(0, 40))
def test_the_window_keeps_exactly_its_live_chunks(window, num_committed, chunk_index):
    if chunk_index < num_committed:
        assert window.keeps(chunk_index, num_committed) == (chunk_index in window.live(num_committed))


@given(windows, stream_codecs, tokens, st.integers(1, 10))
def test_more_of_anything_never_needs_fewer_pages(window, codecs, chunk_tokens, max_commits):
    shape = KVShape(2, 3, 8)

    def peak(window: Window = window, tokens: int = chunk_tokens, commits: int | None = max_commits) -> int:
        return peak_pages(shape, window, codecs, tokens, commits)

    assert peak() <= peak(tokens=chunk_tokens + 1)
    assert peak() <= peak(commits=max_commits + 1) <= peak(commits=None)
    assert peak() <= peak(window=Window(window.sink_chunks, window.recent_chunks + 1))
    assert shape.chunk_pages(chunk_tokens, codecs.steady) <= shape.chunk_pages(chunk_tokens + 1, codecs.steady)


@given(windows, stream_codecs, tokens)
def test_bytes_of_a_full_window_are_those_of_its_chunks(window, codecs, chunk_tokens):
    """When all sinks are old: what every chunk still has at its age, and alpha where keys need it."""
    shape, tables, last = KVShape(2, 3, 64), Tables(2, 3), 20
    num_bytes = 0
    for index in (index for index in range(last + 1) if is_kept(window, index, last + 1)):
        form = first_form(codecs, window, index) if index == last else settled_form(codecs, window, index)
        left = thin_form(form, codecs, window, index, last - index)
        keys = {head_codecs(left, layer, head)[:1] for layer in range(2) for head in range(3)}
        has_alpha = any(name and name[0].startswith("int") for name in keys)
        num_bytes += tables.chunk_pages(chunk_tokens, left) * 36 * 64 + (2 * 3 * 4 if has_alpha else 0)
    assert full_window_bytes(shape, window, codecs, chunk_tokens) == num_bytes
    num_values = window.max_chunks * chunk_tokens * 2 * 2 * 3 * 64
    assert window_bits_per_value(shape, window, codecs, chunk_tokens) == pytest.approx(8 * num_bytes / num_values)


def test_bits_of_a_window_that_half_the_heads_keep_for_one_chunk():
    shape, window = KVShape(1, 2, 64, correction="off"), Window(1, 4)
    codecs = StreamCodecs("int2", look_back=[(0, 1, 1, 1, False)])
    whole = shape.bits_per_value(128, INT2)
    assert window_bits_per_value(shape, window, StreamCodecs("int2"), 128) == pytest.approx(whole)
    assert window_bits_per_value(shape, window, codecs, 128) == pytest.approx(whole * (5 + 1) / (5 + 5))


def test_stream_bytes_is_the_peak_of_all_branches():
    shape, window, codecs = KVShape(30, 12, 128), Window(1, 6), StreamCodecs("int2")
    one = stream_bytes(shape, window, codecs, 4680)
    assert one == 8 * 360 * 37 * 2 * 36 * 128  # 7 kept chunks and the one being committed
    assert stream_bytes(shape, window, codecs, 4680, num_branches=2) == 2 * one
    assert stream_bytes(shape, window, codecs, 4680, max_commits=2) == one // 4
