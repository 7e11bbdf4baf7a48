"""The integers: page sizes by hand, peaks against a simulated stream, what may never get worse."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.errors import ConfigError
from pagedvid.geometry import (
    BITS_PER_VALUE,
    Commit,
    KVShape,
    RoleCodecs,
    Window,
    is_quantized,
    padding_waste_ratio,
    page_bytes,
    page_tokens,
    pages_for_tokens,
    pages_in_memory,
    peak_pages,
    planned_peak_pages,
    stream_bytes,
)
from tests.stream_simulation import PAGE_TOKENS, simulated_peak

CODECS = tuple(BITS_PER_VALUE)
AWKWARD_TOKENS = (1, 17, 18, 19, 127, 128, 129, 300, 880, 1560, 4680)

tokens = st.integers(1, 5000)
codec_names = st.sampled_from(CODECS)
windows = st.builds(Window, st.integers(0, 3), st.integers(1, 5))
role_codecs = st.builds(RoleCodecs, codec_names, st.none() | codec_names, st.none() | codec_names)


@pytest.mark.parametrize("codec", CODECS)
def test_page_tokens(codec):
    assert page_tokens(codec) == PAGE_TOKENS[codec]
    assert is_quantized(codec) == codec.startswith("int")


@pytest.mark.parametrize("head_dim", [2, 8, 64, 80, 128, 256])
def test_a_page_holds_its_tokens_and_their_metadata(head_dim):
    for codec, bits in BITS_PER_VALUE.items():
        code_bytes = page_tokens(codec) * head_dim * bits // 8
        metadata_bytes = 2 * 2 * head_dim if is_quantized(codec) else 0
        assert code_bytes + metadata_bytes == page_bytes(head_dim), codec


def test_pages_in_memory_counts_keys_and_values():
    assert pages_in_memory(2 * page_bytes(64), 64) == 1
    assert pages_in_memory(2 * page_bytes(64) - 1, 64) == 0
    assert pages_in_memory(2**30, 128) == 2**30 // (2 * 36 * 128)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("num_tokens", AWKWARD_TOKENS)
def test_pages_hold_all_tokens_and_waste_less_than_one_page(num_tokens, codec):
    pages = pages_for_tokens(num_tokens, codec)
    room = pages * PAGE_TOKENS[codec]
    assert 0 <= room - num_tokens < PAGE_TOKENS[codec]
    assert padding_waste_ratio(num_tokens, codec) == pytest.approx((room - num_tokens) / room)


def test_wan_chunk_by_hand():
    """4680 tokens of 30 layers x 12 heads x 128 in int2: 37 pages per table, the last with 72 of 128 tokens."""
    shape = KVShape(30, 12, 128)
    assert shape.num_tables == 360
    assert shape.chunk_pages(4680, "int2") == 360 * 37
    assert shape.stored_bytes(4680, "int2") == 360 * (37 * 2 * 36 * 128 + 4)
    assert shape.bf16_bytes(4680) == 4680 * 360 * 128 * 2 * 2
    assert shape.bits_per_value(4680, "int2") == pytest.approx(2.277, abs=1e-3)
    assert shape.stored_bytes(4680, "bf16") == 360 * 260 * 2 * 36 * 128  # no factor where nothing is corrected


@pytest.mark.parametrize("codec", CODECS)
def test_bits_per_value_approach_the_codec_and_its_metadata(codec):
    full_page_bits = PAGE_TOKENS[codec] * BITS_PER_VALUE[codec] + (32 if is_quantized(codec) else 0)
    expected = full_page_bits / PAGE_TOKENS[codec]
    num_tokens = 1000 * PAGE_TOKENS[codec]
    assert KVShape(1, 1, 64).bits_per_value(num_tokens, codec) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("field", ["num_layers", "num_kv_heads", "head_dim"])
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
        ((1, 1, "relative"), "positions is 'relative'; allowed are 'absolute' and 'window'"),
    ],
)
def test_impossible_windows_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        Window(*arguments)


@pytest.mark.parametrize("role", ["history", "sink", "newest"])
def test_unknown_codecs_are_refused_by_role(role):
    with pytest.raises(ConfigError, match=f"the {role} codec is 'int3'; allowed are fp32, bf16, int8, int4, int2"):
        RoleCodecs(**{role: "int3"})


def test_roles_decide_the_codec():
    window = Window(1, 2)
    codecs = RoleCodecs("int2", sink="int8", newest="bf16")
    assert [codecs.final(i, window) for i in range(3)] == ["int8", "int2", "int2"]
    assert [codecs.at_commit(i, window) for i in range(3)] == ["bf16"] * 3
    assert all(codecs.recodes(i, window) for i in range(3))
    assert RoleCodecs("int2", sink="int8").at_commit(0, window) == "int8"
    assert not RoleCodecs("int2", sink="int8").recodes(0, window)
    # With one recent chunk the newest leaves as soon as the next is committed: only sinks are written again.
    assert [codecs.recodes(i, Window(1, 1)) for i in range(3)] == [True, False, False]


@pytest.mark.parametrize("sink_chunks", [0, 1, 3])
@pytest.mark.parametrize("recent_chunks", [1, 2, 4])
def test_peak_pages_against_a_simulated_stream(sink_chunks, recent_chunks):
    window = Window(sink_chunks, recent_chunks)
    shape = KVShape(2, 3, 8)
    names: tuple[str | None, ...] = (None, "int2", "int8", "bf16", "fp32")
    for history, sink, newest in itertools.product(("int2", "int8", "bf16"), names, names):
        codecs = RoleCodecs(history, sink, newest)
        for chunk_tokens in (1, 129, 300):
            for max_commits in (0, 1, 2, 3, 5, 8, None):
                expected = simulated_peak(window, codecs, chunk_tokens, 25 if max_commits is None else max_commits)
                predicted = peak_pages(shape, window, codecs, chunk_tokens, max_commits)
                assert predicted == 6 * expected, (codecs, chunk_tokens, max_commits)


@given(windows, role_codecs, tokens, st.integers(0, 12) | st.none())
def test_peak_pages_against_a_simulated_stream_anywhere(window, codecs, chunk_tokens, max_commits):
    expected = simulated_peak(window, codecs, chunk_tokens, 30 if max_commits is None else max_commits)
    assert peak_pages(KVShape(1, 1, 2), window, codecs, chunk_tokens, max_commits) == expected


@given(windows, role_codecs, tokens, st.integers(0, 12))
def test_a_plan_that_drops_nothing_needs_what_the_window_keeps(window, codecs, chunk_tokens, num_commits):
    shape, plan = KVShape(2, 3, 8), [Commit(chunk_tokens)] * num_commits
    expected = peak_pages(shape, window, codecs, chunk_tokens, num_commits)
    assert planned_peak_pages(shape, window, codecs, plan) == expected


def test_a_plan_counts_what_is_held_while_a_chunk_is_written():
    """int2 pages hold 128 tokens, so chunks of 128, 300 and 10 tokens take 1, 3 and 1 pages of the only table."""
    shape, window = KVShape(1, 1, 8), Window(0, 100)

    def peak(*plan: Commit, newest: str | None = None) -> int:
        return planned_peak_pages(shape, window, RoleCodecs("int2", newest=newest), plan)

    assert peak() == 0
    assert peak(Commit(128), Commit(300), Commit(10)) == 5
    assert peak(Commit(128), Commit(300, drops=(0,)), Commit(10, drops=(1,))) == 3
    assert peak(Commit(128), Commit(300), Commit(10, drops=(0, 1))) == 4
    # The newest chunk, bf16 (18 tokens a page), is written again as the next one comes; unless it is dropped first.
    assert peak(Commit(36), Commit(18), newest="bf16") == 2 + 1 + 1
    assert peak(Commit(36), Commit(18, drops=(0,)), newest="bf16") == 2


@given(windows, st.integers(0, 30), st.integers(0, 40))
def test_the_window_keeps_exactly_its_live_chunks(window, num_committed, chunk_index):
    if chunk_index < num_committed:
        assert window.keeps(chunk_index, num_committed) == (chunk_index in window.live(num_committed))


@given(windows, role_codecs, tokens, st.integers(1, 10))
def test_more_of_anything_never_needs_fewer_pages(window, codecs, chunk_tokens, max_commits):
    shape = KVShape(2, 2, 8)

    def peak(window: Window = window, tokens: int = chunk_tokens, commits: int | None = max_commits) -> int:
        return peak_pages(shape, window, codecs, tokens, commits)

    assert peak() <= peak(tokens=chunk_tokens + 1)
    assert peak() <= peak(commits=max_commits + 1) <= peak(commits=None)
    assert peak() <= peak(window=Window(window.sink_chunks, window.recent_chunks + 1))
    assert pages_for_tokens(chunk_tokens, codecs.history) <= pages_for_tokens(chunk_tokens + 1, codecs.history)


def test_stream_bytes_is_the_peak_of_all_branches():
    shape, window, codecs = KVShape(30, 12, 128), Window(1, 6), RoleCodecs("int2")
    one = stream_bytes(shape, window, codecs, 4680)
    assert one == 8 * 360 * 37 * 2 * 36 * 128  # 7 kept chunks and the one being committed
    assert stream_bytes(shape, window, codecs, 4680, num_branches=2) == 2 * one
    assert stream_bytes(shape, window, codecs, 4680, max_commits=2) == one // 4
