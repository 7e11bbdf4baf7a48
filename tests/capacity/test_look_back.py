"""Windows as people write them, and the pages of streams with windows of any length."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import planned_peak_pages
from pagedvid.cache.window import Commit, Window
from pagedvid.capacity.card_files import find_card
from pagedvid.capacity.cards import StreamSize
from pagedvid.capacity.look_back import MAX_LENGTH, RebuiltLookBack, SlidingLookBack
from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.errors import ConfigError

codec = st.sampled_from(["fp32", "bf16", "int8", "int4", "int2", "int4/int2", "bf16/klt2", "klt1.5"])
layers = st.sampled_from([(), ((0, 1, "int8"),), ((2, 2, "int2/bf16"), (1, 2, "int4"))])
stream_codecs = st.builds(StreamCodecs, codec, st.none() | codec, st.none() | codec, layers)


@given(
    sinks=st.integers(0, 30),
    recent=st.integers(1, 40),
    codecs=stream_codecs,
    chunk_tokens=st.integers(1, 400),
    num_branches=st.integers(1, 3),
)
def test_pages_of_long_windows_are_those_of_a_planned_stream(sinks, recent, codecs, chunk_tokens, num_branches):
    shape, window = KVShape(3, 2, 64, tokens_per_frame=10, frames_per_block=3), Window(sinks, recent)
    size = StreamSize(shape, window, chunk_tokens, num_branches, None, chunk_tokens, 2, 1.0)
    commits = [Commit(chunk_tokens)] * (window.max_chunks + 3)
    assert size.pages(codecs) == num_branches * planned_peak_pages(shape, window, codecs, commits)


@given(num_chunks=st.integers(1, 40), codecs=stream_codecs)
def test_pages_of_a_rebuilt_memory_are_those_of_a_planned_stream(num_chunks, codecs):
    shape, window = KVShape(3, 2, 64), Window(0, num_chunks)
    size = StreamSize(shape, window, 100, 1, num_chunks, 100, 2, 1.0)
    assert size.pages(codecs) == planned_peak_pages(shape, window, codecs, [Commit(100)] * num_chunks)


def test_a_stream_has_the_frames_of_its_model_and_pages_that_suit_the_codecs():
    card = find_card("self-forcing")
    size = card.stream_size(card.resolution, SlidingLookBack(0, 6))
    assert (size.shape.tokens_per_frame, size.shape.frames_per_block, size.shape.page_rows) == (1560, 3, 36)
    klt = StreamCodecs("klt2")
    assert size.on_pages_for(klt).shape.page_rows == 32
    assert size.on_pages_for(klt).pages(klt) == 7 * 360 * 2 * 37  # 43 blocks of 3 frames in a page, 1560 blocks


def test_a_window_of_a_billion_chunks_is_no_trouble():
    card = find_card("self-forcing")
    size = card.stream_size(card.resolution, SlidingLookBack(0, MAX_LENGTH))
    chunk_pages = size.shape.chunk_pages(4680, ChunkCodecs.read("int2"))
    assert size.pages(StreamCodecs("int2")) == (MAX_LENGTH + 1) * chunk_pages


@pytest.mark.parametrize(
    ("model", "written", "look_back"),
    [
        ("self-forcing", "1+6", SlidingLookBack(1, 6)),
        ("self-forcing", "18frames", SlidingLookBack(0, 6)),
        ("self-forcing", "4.5s", SlidingLookBack(0, 6)),
        ("self-forcing", "1frame", SlidingLookBack(0, 1)),
        ("self-forcing", "19 frames", SlidingLookBack(0, 7)),
        ("longlive-2-5b", "24frames", SlidingLookBack(1, 2)),
        ("longlive-2-5b", "8frames", SlidingLookBack(1, 1)),
        ("longcat-13.6b", "19frames", RebuiltLookBack(19)),
        ("longcat-13.6b", "2s", RebuiltLookBack(8)),
    ],
)
def test_windows_as_written(model, written, look_back):
    assert find_card(model).look_back(written) == look_back


@pytest.mark.parametrize(
    "written", ["", "6", "0+0", "-1+3", "1+2+3", "frames", "0s x", "9999999999+1", "0frames", "é+1"]
)
def test_windows_that_are_none(written):
    with pytest.raises(ConfigError, match="window is"):
        find_card("self-forcing").look_back(written)


def test_a_rebuilt_memory_has_no_sinks():
    with pytest.raises(ConfigError, match="rebuilds its memory"):
        find_card("longcat-13.6b").look_back("1+3")


def test_a_window_of_ages_is_refused():
    with pytest.raises(ConfigError, match="too long"):
        find_card("self-forcing").look_back("999999999999s")


def test_rebuilt_memory_is_cut_into_equal_chunks():
    card = find_card("longcat-13.6b")
    size = card.stream_size(card.resolution, RebuiltLookBack(19))
    assert (size.window.recent_chunks, size.chunk_tokens, size.max_commits) == (5, 19 * 1560 // 5, 5)
    assert size.seconds == pytest.approx(19 / 3.75)
    assert size.current_tokens == 20 * 1560
