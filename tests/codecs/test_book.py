"""Which codec a name stands for, and that each is made once."""

from __future__ import annotations

import pytest
import torch

from pagedvid.codecs.assignment import ChunkCodecs
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.channel.codec import ChannelCodec
from pagedvid.codecs.klt.codec import KltCodec
from pagedvid.codecs.raw.codec import RawCodec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.tables_file import Calibration
from pagedvid.codecs.token.codec import HadamardCodec, TokenCodec
from pagedvid.errors import ConfigError
from tests.codecs.klt.scenes import decode, draw, page, tables

PAGE = PageFormat(64)
ALL = (0, 1)


def calibration(num_layers: int = 2) -> Calibration:
    """Of a model with two KV heads, and the same tables in all layers."""
    return Calibration.of("small", [tables("keys")] * num_layers, [tables("values")] * num_layers)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("fp32", RawCodec),
        ("bf16", RawCodec),
        ("int2", ChannelCodec),
        ("int8-pair-s8-post", ChannelCodec),
        ("token2-g64", TokenCodec),
        ("hadamard4-g32", HadamardCodec),
    ],
)
def test_a_codec_without_tables_is_one_object_everywhere(name, kind):
    book = CodecBook(PAGE, 3)
    codec = book.codec(read_codec(name), "keys", 0, (0, 1, 2))
    assert type(codec) is kind and codec.name == name
    assert book.codec(read_codec(name), "values", 7, (1,)) is codec
    assert book.codec(read_codec("int4"), "keys", 0, (0, 1, 2)) is not codec


def test_klt_codecs_are_made_once_for_each_kind_layer_and_heads():
    book = CodecBook(page("klt2"), 2, calibration())
    keys = book.codec(read_codec("klt2"), "keys", 0, ALL)
    assert isinstance(keys, KltCodec) and keys.name == "klt2"
    assert book.codec(read_codec("klt2"), "keys", 0, (0, 1)) is keys
    others = [
        (read_codec("klt1.5"), "keys", 0, ALL),
        (read_codec("klt2"), "values", 0, ALL),
        (read_codec("klt2"), "keys", 1, ALL),
        (read_codec("klt2"), "keys", 0, (1,)),
    ]
    assert len({id(book.codec(*other)) for other in others} | {id(keys)}) == 5


def test_heads_of_klt_codecs_are_those_asked_for():
    x = draw(9, num_chunks=1).k_CHTD[0]
    book = CodecBook(page("klt2"), 2, calibration())
    both, second = (book.codec(read_codec("klt2"), "keys", 1, heads) for heads in (ALL, (1,)))
    torch.testing.assert_close(
        decode(second, second.encode(x[1:]), x.shape[1]), decode(both, both.encode(x), x.shape[1])[1:]
    )


def test_klt_without_tables_says_how_to_make_them():
    with pytest.raises(ConfigError, match="klt2 needs tables of the model; make them with `pagedvid calibrate`"):
        CodecBook(page("klt2"), 2).codec(read_codec("klt2"), "keys", 0, ALL)


@pytest.mark.parametrize(
    ("book", "message"),
    [
        (CodecBook(page("klt2"), 3, calibration()), "for small with 2 KV heads; the cache has 3"),
        (
            CodecBook(PageFormat(64, 36, 10, 4), 2, calibration()),
            r"head_dim.*\(16, 10, 4\); the cache has \(64, 10, 4\)",
        ),
        (CodecBook(PageFormat(16, 36, 10, 2), 2, calibration()), r"\(16, 10, 4\); the cache has \(16, 10, 2\)"),
        (CodecBook(PageFormat(16, 36, 12, 4), 2, calibration()), r"\(16, 10, 4\); the cache has \(16, 12, 4\)"),
    ],
)
def test_tables_of_another_model_are_refused(book, message):
    with pytest.raises(ConfigError, match=message):
        book.codec(read_codec("klt2"), "keys", 0, ALL)


def test_a_codec_under_study_is_found_and_replaces_others_of_its_name():
    own = {"sim": RawCodec(PAGE, read_codec("sim")), "int2": ChannelCodec(PAGE, read_codec("int4"))}
    book = CodecBook(PAGE, 3, own=own)
    assert book.codec(read_codec("sim"), "keys", 0, ALL) is own["sim"]
    assert book.codec(read_codec("int2"), "values", 5, ALL) is own["int2"]
    with pytest.raises(ConfigError, match='"sim" stands for a codec under study; pass it as own'):
        CodecBook(PAGE, 3).codec(read_codec("sim"), "keys", 0, ALL)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("int3", "unknown codec 'int3'; allowed are fp32, bf16, int8"),
        ("token2-g128", "token2-g128 needs a head_dim that is a multiple of 128; it is 64"),
    ],
)
def test_names_that_fit_no_page_are_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        CodecBook(PAGE, 3).codec(read_codec(name), "keys", 0, ALL)


def test_pages_without_room_are_refused():
    with pytest.raises(ConfigError, match="a page of 4 rows holds no token of int2; raise page_rows"):
        CodecBook(PageFormat(64, rows=4), 3).codec(read_codec("int2"), "keys", 0, ALL)


def test_what_chunks_will_need_is_checked_before():
    book = CodecBook(page("klt2"), 2, calibration(num_layers=2))
    chunks = [ChunkCodecs.read("int4/int2"), ChunkCodecs.read("bf16", layers=((1, 1, "klt2"),))]
    book.check(chunks, num_layers=2)
    with pytest.raises(ConfigError, match="the klt tables are for small with 2 layers; the cache has 3"):
        book.check(chunks, num_layers=3)
    with pytest.raises(ConfigError, match="klt2 needs tables"):
        CodecBook(page("klt2"), 2).check(chunks, num_layers=2)
