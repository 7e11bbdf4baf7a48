"""Which codec stores each part of a chunk, and how that is written."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pagedvid.codecs.assignment import KINDS, ChunkCodecs, CodecPair, LayerCodecs, read_layers, write_layers
from pagedvid.errors import ConfigError

names = st.sampled_from(["fp32", "bf16", "int8", "int4", "int2", "int2-pair-s8", "token2-g64", "klt2", "klt1.5"])
written_pairs = names | st.builds("{}/{}".format, names, names)
spans = st.tuples(st.integers(0, 9), st.integers(0, 9)).map(sorted)
exceptions = st.lists(st.tuples(spans, written_pairs).map(lambda it: (*it[0], it[1])), max_size=4).map(tuple)


def pairs(*layers: tuple[int, int, str]) -> LayerCodecs:
    """Exceptions as they are kept."""
    return tuple((first, last, CodecPair.read(written)) for first, last, written in layers)


def names_of(codecs: ChunkCodecs, num_layers: int, kinds: tuple[str, ...] = KINDS) -> list[str]:
    return [codec.name for codec in codecs.used(num_layers, 4, kinds)]


@pytest.mark.parametrize(
    ("written", "pair"),
    [
        ("int2", ("int2", "int2")),
        ("int4/int2", ("int4", "int2")),
        ("bf16/klt1.5", ("bf16", "klt1.5")),
        ("token2-g64/int2-pair", ("token2-g64", "int2-pair")),
    ],
)
def test_a_pair_is_keys_then_values(written, pair):
    read = CodecPair.read(written)
    assert (read.keys.name, read.values.name) == pair
    codecs = ChunkCodecs.read(written)
    assert tuple(codecs.of(kind, layer=3).name for kind in KINDS) == pair


@given(written_pairs)
def test_codecs_are_printed_as_they_are_read(written):
    codecs = ChunkCodecs.read(written)
    assert ChunkCodecs.read(str(codecs)) == codecs
    keys, _, values = written.partition("/")
    assert str(codecs) == (keys if values in ("", keys) else written)


@pytest.mark.parametrize("written", ["", "/", "int2/", "/int2", "int2/int4/int8", "int2 / int4", "int3", "int4/int3"])
def test_other_pairs_are_refused(written):
    with pytest.raises(ConfigError, match=r"unknown codec '.*'; allowed are fp32, bf16"):
        CodecPair.read(written)


def test_layers_by_hand():
    codecs = ChunkCodecs.read("int2", ((0, 1, "int8"), (5, 5, "int4/int2"), (1, 1, "bf16/int4")))
    assert [codecs.of("keys", layer).name for layer in range(7)] == [
        "int8",
        "bf16",
        "int2",
        "int2",
        "int2",
        "int4",
        "int2",
    ]
    assert [codecs.of("values", layer).name for layer in range(7)] == ["int8", "int4", *["int2"] * 5]
    assert names_of(codecs, 7) == ["int8", "bf16", "int4", "int2"]
    assert names_of(codecs, 1) == ["int8"]
    assert names_of(codecs, 7, ("values",)) == ["int8", "int4", "int2"]
    assert str(codecs) == "int2, int8 in layers 0 to 0, bf16/int4 in layers 1 to 1, int4/int2 in layers 5 to 5"


def test_heads_by_hand():
    heads = [(0, 1, 2, "int8"), (0, 2, 2, None), (3, 0, 0, "int4"), (1, 0, 3, "int2")]
    codecs = ChunkCodecs.read("int2", ((3, 3, "bf16"),), heads)
    assert [str(codecs.at(0, head)) for head in range(4)] == ["int2", "int8", "None", "int2"]
    assert [str(codecs.at(3, head)) for head in range(2)] == ["int4", "bf16"] and codecs.of("keys", 3).name == "bf16"
    shown = [(run.start, run.stop, str(pair)) for run, pair in codecs.runs(0, slice(0, 6))]
    assert shown == [(0, 1, "int2"), (1, 2, "int8"), (2, 3, "None"), (3, 6, "int2")]
    assert codecs.runs(0, slice(2, 3)) == ((slice(2, 3), None),)
    assert codecs.runs(1, slice(0, 6)) == ((slice(0, 6), codecs.pair),)
    assert [codec.name for codec in codecs.used(4, 4)] == ["int2", "int8", "int4", "bf16"]
    assert [codec.name for codec in codecs.used(1, 1)] == ["int2"]
    assert str(codecs) == (
        "int2, bf16 in layers 3 to 3, int8 in layer 0, heads 1 to 1, nothing in layer 0, heads 2 to 2, "
        "int4 in layer 3, heads 0 to 0"
    )
    assert ChunkCodecs.read(codecs) is codecs


def test_groups_by_hand():
    heads = [(0, 1, 1, "int8/int4"), (0, 3, 3, "int8"), (0, 4, 4, None), (0, 5, 5, "int8/int4")]
    codecs = ChunkCodecs.read("int2", heads=heads)

    def shown(kind: str, layer: int, heads: tuple[int, ...]) -> list[tuple[tuple[int, ...], str]]:
        return [(group, codec.name) for group, codec in codecs.groups(kind, layer, heads)]

    every = tuple(range(6))
    assert shown("keys", 0, every) == [((0, 2), "int2"), ((1, 3, 5), "int8")]
    assert shown("values", 0, every) == [((0, 2), "int2"), ((1, 5), "int4"), ((3,), "int8")]
    assert shown("values", 0, (3, 4, 5)) == [((3,), "int8"), ((5,), "int4")]
    assert shown("keys", 0, (4,)) == []
    assert shown("keys", 1, every) == [(every, "int2")]


def test_codecs_of_every_head_are_grouped_quickly():
    """40 layers of 40 heads, each with an exception: as in a large model with a budget."""
    names = ("klt0.75", "klt2", "klt4")
    heads = [(layer, head, head, names[(layer + head) % 3]) for layer in range(40) for head in range(40)]
    started = time.process_time()
    codecs, every = ChunkCodecs.read("klt1.5", heads=heads), tuple(range(40))
    for _ in range(10):
        groups = [codecs.groups(kind, layer, every) for layer in range(40) for kind in ("keys", "values")]
    assert all(len(each) == 3 and sum(len(group) for group, _ in each) == 40 for each in groups)
    assert time.process_time() - started < 2, "seconds; it takes a tenth of one"


head_exceptions = st.lists(
    st.tuples(st.integers(0, 3), spans, st.none() | written_pairs).map(lambda it: (it[0], *it[1], it[2])), max_size=5
)


@given(written_pairs, exceptions, head_exceptions)
def test_the_last_exception_that_names_a_head_counts(written, layers, heads):
    codecs, rule = ChunkCodecs.read(written, layers, heads), ChunkCodecs.read(written, layers)
    for layer in range(5):
        found = []
        for head in range(11):
            named = [pair for each, first, last, pair in heads if each == layer and first <= head <= last]
            found.append(
                str(rule.runs(layer, slice(0, 1))[0][1] if not named else named[-1] and CodecPair.read(named[-1]))
            )
        assert [str(codecs.at(layer, head)) for head in range(11)] == found
        for kind in ("keys", "values"):
            groups = codecs.groups(kind, layer, tuple(range(11)))
            by_head = {head: codec.name for group, codec in groups for head in group}
            pairs = [codecs.at(layer, head) for head in range(11)]
            assert by_head == {head: pair.of(kind).name for head, pair in enumerate(pairs) if pair is not None}
            assert len({codec for _, codec in groups}) == len(groups)
            assert [group[0] for group, _ in groups] == sorted(group[0] for group, _ in groups)
        runs = codecs.runs(layer, slice(0, 11))
        assert [str(pair) for run, pair in runs for _ in range(run.start, run.stop)] == found
        assert all(a[1] != b[1] for a, b in itertools.pairwise(runs))
    again = ChunkCodecs(codecs.pair, codecs.layers, codecs.heads)
    assert again == codecs and hash(again) == hash(codecs) and again.text == codecs.text
    assert (codecs == rule) == (codecs.text == rule.text) == (not codecs.heads)


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ("int2", "heads is 'int2'; give a list"),
        ([(0, 1, "int8")], "heads is .*; write"),
        ([(0, 2, 1, "int8")], "last head of an exception is 1"),
        ([(-1, 0, 1, None)], "layer of an exception is -1"),
        ([(0, 0, 1, "int3")], "unknown codec 'int3'"),
    ],
)
def test_other_heads_are_refused(heads, message):
    with pytest.raises(ConfigError, match=message):
        ChunkCodecs.read("int2", heads=heads)
    with pytest.raises(ConfigError, match="has its own"):
        ChunkCodecs.read(ChunkCodecs.read("int2"), heads=[(0, 0, 0, None)])


@given(written_pairs, exceptions)
def test_the_last_exception_that_names_a_layer_counts(written, layers):
    codecs = ChunkCodecs.read(written, layers)
    for layer in range(11):
        found = written
        for first, last, exception in layers:
            found = exception if first <= layer <= last else found
        assert CodecPair(codecs.of("keys", layer), codecs.of("values", layer)) == CodecPair.read(found)
    used = codecs.used(11, 4)
    assert set(used) == {codecs.of(kind, layer) for kind in KINDS for layer in range(11)}
    assert len(set(used)) == len(used)
    assert set(used) <= set(codecs.all) and {codecs.of("keys", layer) for layer in range(11)} <= set(codecs.key_codecs)


@given(written_pairs, exceptions)
def test_chunks_that_store_every_layer_alike_are_equal(written, layers):
    codecs = ChunkCodecs.read(written, layers)
    one_by_one = tuple((layer, layer, "/".join(codecs.of(kind, layer).name for kind in KINDS)) for layer in range(10))
    assert ChunkCodecs.read(written, one_by_one) == codecs
    assert hash(ChunkCodecs.read(written, one_by_one)) == hash(codecs)
    assert all(codecs.of("keys", first) != codecs.keys or codecs.of("values", first) != codecs.values
               for first, _, _ in codecs.layers)  # fmt: skip


def test_exceptions_over_very_many_layers_cost_nothing():
    codecs = ChunkCodecs.read("int2", ((0, 10**15, "int8"), (5, 10**12, "int2/int2"), (7, 7, "int4")))
    assert codecs.layers == pairs((0, 4, "int8"), (7, 7, "int4"), (10**12 + 1, 10**15, "int8"))


@given(exceptions)
def test_exceptions_mean_the_same_when_written_and_read_again(layers):
    again = read_layers(write_layers(pairs(*layers)))
    codecs, same = ChunkCodecs.read("int2", layers), ChunkCodecs.read("int2", again)
    for layer in range(11):
        assert [codecs.of(kind, layer) for kind in KINDS] == [same.of(kind, layer) for kind in KINDS]
    if len({(first, last) for first, last, _ in layers}) == len(layers):
        assert again == pairs(*layers)


def test_exceptions_may_be_numbers_or_text():
    assert read_layers({"0-1": "int8", 5: "int4/int2", "7": "klt2"}) == pairs(
        (0, 1, "int8"), (5, 5, "int4/int2"), (7, 7, "klt2")
    )
    assert read_layers({}) == ()
    assert write_layers(pairs((0, 1, "int8"), (5, 5, "int4/int2"))) == {"0-1": "int8", "5": "int4/int2"}


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"2-1": "int8"}, "'2-1': 'int8' is not an exception for layers; write it as 3: int4 or 0-1: int8/int4"),
        ({"-1": "int8"}, "'-1': 'int8' is not an exception"),
        ({-1: "int8"}, "-1: 'int8' is not an exception"),
        ({"a": "int8"}, "'a': 'int8' is not an exception"),
        ({"1-": "int8"}, "'1-': 'int8' is not an exception"),
        ({1.5: "int8"}, "1.5: 'int8' is not an exception"),
        ({3: 8}, "3: 8 is not an exception"),
        ({3: None}, "3: None is not an exception"),
        ({3: "int3"}, "unknown codec 'int3'"),
        ({"0-3": "int4/x"}, "unknown codec 'x'"),
    ],
)
def test_other_exceptions_are_refused(mapping, message):
    with pytest.raises(ConfigError, match=message):
        read_layers(mapping)
