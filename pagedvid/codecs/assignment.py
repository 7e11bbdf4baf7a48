"""Which codec stores the keys and the values of a chunk in each layer and KV head, and how that is written.

int2                 keys and values of all layers
int4/int2            keys in int4, values in int2
{0-1: int8, 5: int4/int2}    exceptions for some layers, in a configuration file

Heads of a layer may differ, too, and a head may keep nothing of a chunk: it does not see the chunk then.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from operator import itemgetter
from typing import Any, TypeVar

from pagedvid.arguments import list_of, whole_number
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import CodecSpec
from pagedvid.errors import ConfigError
from pagedvid.shown import shown

KINDS = ("keys", "values")
Heads = tuple[int, ...]
"""Some KV heads of a layer, in ascending order."""
T = TypeVar("T")


@dataclass(frozen=True, repr=False)
class CodecPair:
    """The codecs of keys and of values."""

    keys: CodecSpec
    values: CodecSpec

    @staticmethod
    def read(written: str | CodecPair) -> CodecPair:
        """From "int2" or "int4/int2". Raises ConfigError."""
        if isinstance(written, CodecPair):
            return written
        if not isinstance(written, str):
            raise ConfigError(f"{written!r} is not the name of a codec; give text such as 'int2' or 'int4/int2'")
        keys, slash, values = written.partition("/")
        return CodecPair(read_codec(keys), read_codec(values if slash else keys))

    def of(self, kind: str) -> CodecSpec:
        """The codec of "keys" or "values"."""
        return self.keys if kind == "keys" else self.values

    def __repr__(self) -> str:
        return f"CodecPair.read({str(self)!r})"

    def __str__(self) -> str:
        return self.keys.name if self.keys == self.values else f"{self.keys}/{self.values}"


LayerCodecs = tuple[tuple[int, int, CodecPair], ...]
"""Exceptions: (first layer, last layer, codecs). Where two name the same layer, the later one counts."""
HeadCodecs = tuple[tuple[int, int, int, CodecPair | None], ...]
"""Exceptions from those: (layer, first KV head, last KV head, codecs); None: these heads keep nothing. Where two name
the same head, the later one counts."""
HeadSpan = tuple[int, int, int]
"""(layer, first KV head, last KV head)."""
HeadRun = tuple[slice, CodecPair | None]
"""Neighbouring KV heads that are stored alike, and how; None: they keep nothing."""
HeadGroups = tuple[tuple[Heads, CodecSpec], ...]
"""KV heads, not always neighbours, that store their keys or their values alike, and how."""


@dataclass(frozen=True)
class ChunkCodecs:
    """The codecs of one chunk. Two are equal if they have the same exceptions, however these were written."""

    pair: CodecPair
    layers: LayerCodecs = ()
    heads: HeadCodecs = ()
    text: str = field(default="", init=False, repr=False, compare=False)
    """For people; equal if and only if the codecs are equal."""
    _by_layer: dict[int, tuple[tuple[int, int, CodecPair | None], ...]] = field(init=False, repr=False, compare=False)
    """The exceptions of the heads of each layer that has any."""
    _groups: dict[tuple[str, int, Heads], HeadGroups] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Those that were asked for."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", joined_exceptions(self.pair, self.layers))
        by_layer: dict[int, list[tuple[int, int, CodecPair | None]]] = {}
        for layer, first, last, stored in self.heads:
            by_layer.setdefault(layer, []).append((first, last, stored))
        kept = {layer: joined_exceptions(self._rule(layer), each) for layer, each in sorted(by_layer.items())}
        object.__setattr__(self, "_by_layer", {layer: each for layer, each in kept.items() if each})
        heads = tuple((layer, *each) for layer, exceptions in kept.items() for each in exceptions)
        object.__setattr__(self, "heads", heads)
        exceptions = [f", {pair} in layers {first} to {last}" for first, last, pair in self.layers]
        for layer, first, last, stored in heads:
            exceptions.append(f", {stored or 'nothing'} in layer {layer}, heads {first} to {last}")
        object.__setattr__(self, "text", f"{self.pair}{''.join(exceptions)}")

    def __hash__(self) -> int:
        return hash(self.text)

    @staticmethod
    def read(written: str | CodecPair | ChunkCodecs, layers: Any = (), heads: Any = ()) -> ChunkCodecs:
        """From "int2" or "int4/int2", and exceptions as `read_layers` and `read_heads` take them.

        Raises ConfigError.
        """
        if isinstance(written, ChunkCodecs):
            if not (layers or heads):
                return written
            raise ConfigError(f"exceptions are given besides {shown(written)}, which has its own; give them there")
        return ChunkCodecs(CodecPair.read(written), read_layers(layers), read_heads(heads))

    def without(self, heads: Iterable[HeadSpan]) -> ChunkCodecs:
        """The same codecs for all heads but these, which keep nothing; `self` where they kept nothing before."""
        thinner = ChunkCodecs(self.pair, self.layers, (*self.heads, *((*span, None) for span in heads)))
        return self if thinner == self else thinner

    @property
    def keys(self) -> CodecSpec:
        """The codec of keys in layers without an exception."""
        return self.pair.keys

    @property
    def values(self) -> CodecSpec:
        """The codec of values in layers without an exception."""
        return self.pair.values

    def of(self, kind: str, layer: int) -> CodecSpec:
        """The codec of "keys" or "values" in one layer, for heads without an exception."""
        return self._rule(layer).of(kind)

    def at(self, layer: int, head: int) -> CodecPair | None:
        """How a KV head stores the chunk in one layer; None: it keeps nothing."""
        exceptions = self._by_layer.get(layer, ())
        before = bisect_right(exceptions, head, key=itemgetter(0))
        if before and head <= exceptions[before - 1][1]:
            return exceptions[before - 1][2]
        return self._rule(layer)

    def groups(self, kind: str, layer: int, heads: Heads) -> HeadGroups:
        """Some KV heads, grouped by the codec of their "keys" or "values", in the order of the first of each group;
        without heads that keep nothing."""
        key = (kind, layer, heads)
        if key not in self._groups:
            alike: dict[CodecSpec, list[int]] = {}
            for head in heads:
                if (pair := self.at(layer, head)) is not None:
                    alike.setdefault(pair.of(kind), []).append(head)
            self._groups[key] = tuple((tuple(each), codec) for codec, each in alike.items())
        return self._groups[key]

    def runs(self, layer: int, heads: slice) -> tuple[HeadRun, ...]:
        """Some KV heads, in runs that are stored alike."""
        exceptions = self._by_layer.get(layer)
        if exceptions is None:
            return ((heads, self._rule(layer)),)
        bounds = {bound for first, last, _ in exceptions for bound in (first, last + 1)}
        inner = sorted(bound for bound in bounds if heads.start < bound < heads.stop)
        cuts = pairwise((heads.start, *inner, heads.stop))
        return tuple((slice(start, stop), self.at(layer, start)) for start, stop in cuts)

    @cached_property
    def key_codecs(self) -> tuple[CodecSpec, ...]:
        """All codecs named for keys, each once, even one that exceptions replace in every layer."""
        return _once(pair.keys for pair in self._pairs)

    @cached_property
    def all(self) -> tuple[CodecSpec, ...]:
        """All codecs named for keys or values, each once."""
        return _once(codec for pair in self._pairs for codec in (pair.keys, pair.values))

    def used(self, num_layers: int, num_heads: int, kinds: Iterable[str] = KINDS) -> tuple[CodecSpec, ...]:
        """The codecs that the first layers and KV heads use for `kinds`, each once."""
        runs = (run for layer in range(num_layers) for run in self.runs(layer, slice(0, num_heads)))
        pairs, kinds = (pair for _, pair in runs if pair is not None), tuple(kinds)
        return _once(pair.of(kind) for pair in pairs for kind in kinds)

    def _rule(self, layer: int) -> CodecPair:
        """The codecs of a layer's heads without an exception."""
        for first, last, pair in self.layers:
            if first <= layer <= last:
                return pair
        return self.pair

    @property
    def _pairs(self) -> Iterator[CodecPair]:
        yield self.pair
        yield from (pair for _, _, pair in self.layers)
        yield from (pair for *_, pair in self.heads if pair is not None)

    def __str__(self) -> str:
        return self.text


def are_neighbours(heads: Heads) -> bool:
    """Whether their numbers follow each other without a gap."""
    return heads[-1] - heads[0] + 1 == len(heads)


def _once(codecs: Iterable[CodecSpec]) -> tuple[CodecSpec, ...]:
    return tuple(dict.fromkeys(codecs))


def joined_exceptions(rule: T, given: Sequence[tuple[int, int, T]]) -> tuple[tuple[int, int, T], ...]:
    """The same exceptions in ascending order, without overlaps or repetitions of the rule, equal neighbours joined."""
    bounds = sorted({bound for first, last, _ in given for bound in (first, last + 1)})
    merged: list[tuple[int, int, T]] = []
    for first, end in pairwise(bounds):
        pair = next((pair for a, b, pair in reversed(given) if a <= first <= b), rule)
        if pair == rule:
            continue
        if merged and merged[-1][1:] == (first - 1, pair):
            merged[-1] = (merged[-1][0], end - 1, pair)
        else:
            merged.append((first, end - 1, pair))
    return tuple(merged)


def read_layers(written: object) -> LayerCodecs:
    """From {"0-1": "int8", 5: "int4/int2"}, or from a result of this function. Raises ConfigError."""
    if isinstance(written, Mapping):
        return tuple(_read_exception(key, codecs) for key, codecs in written.items())
    example = "{0: 'int8', '2-5': 'int4/int2'}"
    triples: list[Any] = list_of(tuple, "layers", written, example, ConfigError)
    if any(len(triple) != 3 for triple in triples):
        raise ConfigError(f"layers is {written!r}; write {example}")
    return tuple(map(_checked_triple, triples))


def _read_exception(key: object, codecs: object) -> tuple[int, int, CodecPair]:
    match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", str(key))
    if match is None or not isinstance(codecs, (str, CodecPair)) or int(match[2] or match[1]) < int(match[1]):
        raise ConfigError(
            f"{shown(key)}: {shown(codecs)} is not an exception for layers; write it as 3: int4 or 0-1: int8/int4"
        )
    return int(match[1]), int(match[2] or match[1]), CodecPair.read(codecs)


def _checked_triple(triple: tuple[Any, Any, Any]) -> tuple[int, int, CodecPair]:
    first, last, written = triple
    pair = CodecPair.read(written)
    first = whole_number("first layer of an exception", first, 0, error=ConfigError)
    return first, whole_number("last layer of an exception", last, first, error=ConfigError), pair


def read_heads(written: object) -> HeadCodecs:
    """From [(layer, first head, last head, "int4/int2" or None), ...]. Raises ConfigError."""
    example = "[(0, 2, 3, 'int8'), (5, 0, 0, None)]"
    given: list[Any] = list_of(tuple, "heads", written, example, ConfigError)
    if any(len(each) != 4 for each in given):
        raise ConfigError(f"heads is {written!r}; write {example}")
    return tuple(map(_checked_heads, given))


def _checked_heads(given: tuple[Any, Any, Any, Any]) -> tuple[int, int, int, CodecPair | None]:
    layer, first, last, written = given
    layer = whole_number("layer of an exception", layer, 0, error=ConfigError)
    first = whole_number("first head of an exception", first, 0, error=ConfigError)
    last = whole_number("last head of an exception", last, first, error=ConfigError)
    return layer, first, last, None if written is None else CodecPair.read(written)


def write_layers(layers: LayerCodecs) -> dict[str, str]:
    """The inverse of `read_layers`. Of two exceptions for the same layers, only the later one is written."""
    written: dict[str, str] = {}
    for first, last, pair in layers:
        key = str(first) if first == last else f"{first}-{last}"
        written.pop(key, None)
        written[key] = str(pair)
    return written
