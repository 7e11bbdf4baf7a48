"""Which codec stores the keys and the values of a chunk in each layer, and how that is written in a configuration.

int2                 keys and values of all layers
int4/int2            keys in int4, values in int2
{0-1: int8, 5: int4/int2}    exceptions for some layers, in a configuration file
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

from pagedvid.arguments import list_of, whole_number
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import CodecSpec
from pagedvid.errors import ConfigError
from pagedvid.shown import shown

KINDS = ("keys", "values")


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


@dataclass(frozen=True)
class ChunkCodecs:
    """The codecs of one chunk. Two are equal if they store every layer alike, however their exceptions were written."""

    pair: CodecPair
    layers: LayerCodecs = ()
    text: str = field(default="", init=False, repr=False, compare=False)
    """For people; equal if and only if the codecs are equal."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _exceptions(self.pair, self.layers))
        exceptions = "".join(f", {pair} in layers {first} to {last}" for first, last, pair in self.layers)
        object.__setattr__(self, "text", f"{self.pair}{exceptions}")

    def __hash__(self) -> int:
        return hash(self.text)

    @staticmethod
    def read(written: str | CodecPair, layers: Any = ()) -> ChunkCodecs:
        """From "int2" or "int4/int2", and exceptions as `read_layers` takes them. Raises ConfigError."""
        return ChunkCodecs(CodecPair.read(written), read_layers(layers))

    @property
    def keys(self) -> CodecSpec:
        """The codec of keys in layers without an exception."""
        return self.pair.keys

    @property
    def values(self) -> CodecSpec:
        """The codec of values in layers without an exception."""
        return self.pair.values

    def of(self, kind: str, layer: int) -> CodecSpec:
        """The codec of "keys" or "values" in one layer."""
        for first, last, pair in self.layers:
            if first <= layer <= last:
                return pair.of(kind)
        return self.pair.of(kind)

    @cached_property
    def key_codecs(self) -> tuple[CodecSpec, ...]:
        """All codecs named for keys, each once, even one that exceptions replace in every layer."""
        return _once(pair.keys for pair in self._pairs)

    @cached_property
    def all(self) -> tuple[CodecSpec, ...]:
        """All codecs named for keys or values, each once."""
        return _once(codec for pair in self._pairs for codec in (pair.keys, pair.values))

    def in_layers(self, num_layers: int, kinds: Iterable[str] = KINDS) -> tuple[CodecSpec, ...]:
        """The codecs that the first `num_layers` layers use for `kinds`, each once."""
        kinds = tuple(kinds)
        return _once(self.of(kind, layer) for layer in range(num_layers) for kind in kinds)

    @property
    def _pairs(self) -> tuple[CodecPair, ...]:
        return (self.pair, *(pair for _, _, pair in self.layers))

    def __str__(self) -> str:
        return self.text


def _once(codecs: Iterable[CodecSpec]) -> tuple[CodecSpec, ...]:
    return tuple(dict.fromkeys(codecs))


def _exceptions(rule: CodecPair, layers: LayerCodecs) -> LayerCodecs:
    """The same exceptions in ascending order, without overlaps or repetitions of the rule, equal neighbours joined."""
    bounds = sorted({bound for first, last, _ in layers for bound in (first, last + 1)})
    merged: list[tuple[int, int, CodecPair]] = []
    for first, end in pairwise(bounds):
        pair = next((pair for a, b, pair in reversed(layers) if a <= first <= b), rule)
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


def write_layers(layers: LayerCodecs) -> dict[str, str]:
    """The inverse of `read_layers`. Of two exceptions for the same layers, only the later one is written."""
    written: dict[str, str] = {}
    for first, last, pair in layers:
        key = str(first) if first == last else f"{first}-{last}"
        written.pop(key, None)
        written[key] = str(pair)
    return written
