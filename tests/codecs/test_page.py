"""Codec names and page sizes: by hand, and what must hold for every name and every page."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pagedvid.codecs.channel.spec import ChannelSpec
from pagedvid.codecs.klt.spec import KltSpec
from pagedvid.codecs.raw.spec import RawSpec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat, block_frames
from pagedvid.codecs.token.spec import TokenSpec
from pagedvid.errors import ConfigError

RAW = ("fp32", "bf16", "sim")
CHANNEL = tuple(
    f"int{bits}{pair}{short}{post}"
    for bits in (2, 4, 8)
    for pair in ("", "-pair")
    for short in ("", "-s8")
    for post in ("", "-post")
)
TOKEN = tuple(f"{family}{bits}-g{g}" for family in ("token", "hadamard") for bits in (2, 4, 8) for g in (16, 32, 64))
KLT = ("klt0.5", "klt1", "klt1.5", "klt1.75", "klt2", "klt3", "klt8")

names = st.sampled_from((*RAW, *CHANNEL, *TOKEN, *KLT))
formats = st.builds(
    PageFormat,
    st.sampled_from([64, 128, 192]),
    st.integers(5, 200),
    st.sampled_from([1, 3, 60, 880, 1560]),
    st.integers(1, 8),
)
num_tokens = st.integers(1, 20_000)


def page_tokens(page: PageFormat, name: str) -> int:
    """Tokens of a page; examples in which it holds none are skipped."""
    try:
        return read_codec(name).page_tokens(page)
    except ConfigError:
        assume(False)
        raise


@pytest.mark.parametrize(
    "spec",
    [
        RawSpec("fp32", 32, is_quantized=False),
        RawSpec("sim", 32, is_quantized=True, has_step_sizes=True),
        RawSpec("bf16", 16, is_quantized=False),
        ChannelSpec("int2", 2),
        ChannelSpec("int4-pair", 4, by_pair=True),
        ChannelSpec("int2-pair-s8-post", 2, by_pair=True, is_short=True, stores_rotated=True),
        ChannelSpec("int8-post", 8, stores_rotated=True),
        TokenSpec("token2-g64", 2, 64, stores_rotated=True),
        TokenSpec("hadamard4-g128", 4, 128, is_hadamard=True, stores_rotated=True),
        KltSpec("klt2", 2),
        KltSpec("klt1.5", 1.5),
    ],
)
def test_a_name_is_read_into_its_parts(spec):
    assert read_codec(spec.name) == spec
    assert str(spec) == spec.name


@given(names)
def test_properties_follow_from_the_name(name):
    spec, is_by_token = read_codec(name), name.startswith(("token", "hadamard"))
    assert spec.is_quantized == (name not in ("fp32", "bf16"))
    assert spec.has_step_sizes == (name == "sim" or name.startswith("int") or is_by_token)
    assert spec.stores_rotated == (name.endswith("-post") or is_by_token)
    assert isinstance(spec, TokenSpec) == is_by_token
    assert spec.needs_tables == name.startswith("klt")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "auto",
        "INT2",
        "int2 ",
        "int3",
        "int16",
        "int2-s8-pair",
        "int2-pair-pair",
        "int2-",
        "int2/int4",
        "token2",
        "token2-g48",
        "token3-g64",
        "hadamard2-g256",
        "klt",
        "klt0.25",
        "klt0",
        "klt8.5",
        "klt-2",
        "klt2.",
        "klt2-post",
        "kivi2",
    ],
)
def test_other_names_are_refused_and_the_allowed_ones_listed(name):
    with pytest.raises(ConfigError, match=rf"unknown codec '{name}'; allowed are fp32, bf16, .* token2-g64, .* klt2"):
        read_codec(name)
    with pytest.raises(ConfigError, match="unknown codec"):
        read_codec(name).page_tokens(PageFormat(64))


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("fp32", 9),
        ("sim", 9),
        ("bf16", 18),
        ("int8", 32),
        ("int4", 64),
        ("int2", 128),
        ("int2-post", 128),
        ("int2-s8", 132),  # 2 rows of zero points, 1 of step sizes
        ("int2-pair", 132),
        ("int2-pair-s8", 132),  # half a row of step sizes, rounded up
        ("token2-g64", 115),  # 36 * 64 bytes in tokens of 16 + 4
        ("hadamard4-g32", 57),  # 32 + 2 * 4
        ("klt2", 144),
        ("klt1.5", 192),
    ],
)
def test_tokens_of_a_page_of_36_rows_by_hand(name, tokens):
    assert read_codec(name).page_tokens(PageFormat(64)) == tokens


@pytest.mark.parametrize(
    ("name", "rows", "tokens"),
    [("int2", 5, 4), ("int2", 20, 64), ("int8", 20, 16), ("bf16", 5, 2), ("fp32", 4, 1), ("klt2", 32, 128)],
)
def test_tokens_of_other_pages_by_hand(name, rows, tokens):
    assert read_codec(name).page_tokens(PageFormat(64, rows)) == tokens
    assert PageFormat(64, rows).num_bytes == 64 * rows


def test_klt_pages_hold_whole_blocks_of_frames():
    """A page of 32 rows is 128 tokens in 2 bits: 32 blocks of 4 frames, or, rounded up, 43 blocks of 3."""
    page = PageFormat(64, 32, tokens_per_frame=60, frames_per_block=4)
    assert (read_codec("klt2").page_blocks(page), read_codec("klt2").page_tokens(page)) == (32, 128)
    assert read_codec("klt2").num_pages(page, 8 * 60) == 4  # 120 blocks
    assert read_codec("klt2").num_pages(page, 240) == read_codec("klt2").num_pages(page, 1) == 2  # 60 blocks
    assert read_codec("klt2").num_pages(page, 241) == 4
    three = PageFormat(64, 32, tokens_per_frame=60, frames_per_block=3)
    assert (read_codec("klt2").page_blocks(three), read_codec("klt2").page_tokens(three)) == (43, 129)


@given(formats, names, num_tokens)
def test_pages_hold_all_tokens_and_waste_less_than_one_page(page, name, num_tokens):
    room = page_tokens(page, name)
    padded = read_codec(name).padded_tokens(page, num_tokens)
    assert padded == read_codec(name).num_pages(page, num_tokens) * room
    span = page.tokens_per_frame * page.frames_per_block if name.startswith("klt") else 1
    whole = span * -(-num_tokens // span)  # klt: also the blocks of a span that is not full
    assert num_tokens <= whole <= padded < whole + room


@given(formats, names, num_tokens)
def test_more_tokens_never_need_fewer_pages(page, name, num_tokens):
    page_tokens(page, name)
    assert read_codec(name).num_pages(page, num_tokens) <= read_codec(name).num_pages(page, num_tokens + 1)


@given(formats, names)
def test_a_page_has_the_bits_of_the_name_for_every_value_and_less_than_a_token_more(page, name):
    """Not counting the step sizes and zero points of channel and token codecs."""
    tokens, parts, head_dim = page_tokens(page, name), read_codec(name), page.head_dim
    assume(not isinstance(parts, KltSpec))
    per_token = int(parts.bits * head_dim)  # bits
    metadata = 0
    if isinstance(parts, ChannelSpec):
        step_size_bits = head_dim * (8 if parts.is_short else 16) // (2 if parts.by_pair else 1)
        metadata = step_size_bits + 16 * head_dim
    elif isinstance(parts, TokenSpec):
        per_token += 32 * head_dim // parts.group
        assert per_token == 8 * read_codec(name).token_bytes(page)
    used = metadata + tokens * per_token
    is_channel = isinstance(parts, ChannelSpec)
    spare = per_token + (4 * head_dim if is_channel and parts.by_pair and parts.is_short else 0)  # half a row
    assert used <= 8 * page.num_bytes < used + spare + (8 * head_dim if is_channel else 1)


@given(formats, st.sampled_from(KLT))
def test_klt_pages_have_at_most_the_bits_of_the_name_for_every_value(page, name):
    """Including scales; with one block fewer, pages would exceed them."""
    bits, tokens = read_codec(name).bits, read_codec(name).page_tokens(page)
    assert 8 * page.rows / tokens <= bits
    assert tokens == page.frames_per_block or 8 * page.rows / (tokens - page.frames_per_block) > bits


@pytest.mark.parametrize("rows", [1, 2, 3, 4])
def test_a_page_of_too_few_rows_is_refused(rows):
    with pytest.raises(ConfigError, match=f"a page of {rows} rows holds no token of int2; raise page_rows"):
        read_codec("int2").page_tokens(PageFormat(64, rows))


@pytest.mark.parametrize(
    ("page", "name"),
    [(PageFormat(64, 3), "fp32"), (PageFormat(64, 1), "bf16"), (PageFormat(64, 1), "token8-g16")],
    ids=str,
)
def test_so_are_pages_that_hold_no_token_of_other_codecs(page, name):
    with pytest.raises(ConfigError, match=f"holds no token of {name}; raise page_rows"):
        read_codec(name).page_tokens(page)
    with pytest.raises(ConfigError, match=f"holds no token of {name}; raise page_rows"):
        read_codec(name).num_pages(page, 100)


def test_groups_must_divide_the_channels():
    with pytest.raises(ConfigError, match="token2-g64 needs a head_dim that is a multiple of 64; it is 80"):
        read_codec("token2-g64").page_tokens(PageFormat(80))


@pytest.mark.parametrize(("codec", "rows"), [("int2", 36), ("bf16", 36), ("klt2", 32), ("klt1.5", 24), ("klt4", 64)])
def test_rows_that_suit_a_codec(codec, rows):
    assert read_codec(codec).page_rows == rows
    if codec.startswith("klt"):
        assert read_codec(codec).page_tokens(PageFormat(64, rows)) == 128


@given(st.sampled_from(KLT))
def test_a_suitable_klt_page_holds_128_tokens_and_no_row_too_many(name):
    rows = read_codec(name).page_rows
    assert read_codec(name).page_tokens(PageFormat(64, rows)) >= 128
    assert rows == 1 or int(8 * (rows - 1) / read_codec(name).bits) < 128


@pytest.mark.parametrize(
    ("frames_per_chunk", "frames"), [(1, 1), (3, 3), (4, 4), (5, 5), (8, 8), (12, 6), (16, 8), (11, 1), (21, 7)]
)
def test_frames_of_a_block_divide_the_chunk(frames_per_chunk, frames):
    assert block_frames(frames_per_chunk) == frames
