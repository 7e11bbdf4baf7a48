"""Which codec each part of a chunk is stored in: keys and values, layer by layer; and how people write that.

int2                 keys and values of all layers
int4/int2            keys in int4, values in int2
{0-1: int8, 5: int4/int2}    exceptions by layer, in a configuration file
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pagedvid.arguments import list_of, whole_number
from pagedvid.codecs.page import read_codec
from pagedvid.errors import ConfigError
from pagedvid.shown import shown

KINDS = ("keys", "values")
LayerCodecs = tuple[tuple[int, int, str], ...]
"""Exceptions: (first layer, last layer, codecs as written); of two for one layer the later counts."""


@dataclass(frozen=True)
class ChunkCodecs:
    """The codecs of one chunk. Two that store every layer alike are equal, however their exceptions were written."""

    keys: str
    values: str
    layers: LayerCodecs = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", _exceptions(self.keys, self.values, self.layers))

    @staticmethod
    def read(written: str, layers: LayerCodecs = ()) -> ChunkCodecs:
        """From "int2" or "int4/int2". Raises ConfigError."""
        return ChunkCodecs(*split_pair(written), layers)

    def of(self, kind: str, layer: int) -> str:
        """The codec of "keys" or "values" in one layer."""
        for first, last, written in self.layers:
            if first <= layer <= last:
                return split_pair(written)[KINDS.index(kind)]
        return self.keys if kind == "keys" else self.values

    def names(self, num_layers: int, kinds: Sequence[str] = KINDS) -> tuple[str, ...]:
        """All codecs in use, each once."""
        return tuple(dict.fromkeys(self.of(kind, layer) for layer in range(num_layers) for kind in kinds))

    def __str__(self) -> str:
        name = self.keys if self.keys == self.values else f"{self.keys}/{self.values}"
        return name + "".join(f", {written} in layers {first} to {last}" for first, last, written in self.layers)


def _exceptions(keys: str, values: str, layers: LayerCodecs) -> LayerCodecs:
    """The same exceptions in ascending order: no overlap, none that repeats the rule, neighbours alike in one."""
    bounds = sorted({bound for first, last, _ in layers for bound in (first, last + 1)})
    merged: list[tuple[int, int, str]] = []
    for first, end in pairwise(bounds):
        written = next((codecs for a, b, codecs in reversed(layers) if a <= first <= b), None)
        pair = (keys, values) if written is None else split_pair(written)
        if pair == (keys, values):
            continue
        name = pair[0] if pair[0] == pair[1] else "/".join(pair)
        if merged and merged[-1][1:] == (first - 1, name):
            merged[-1] = (merged[-1][0], end - 1, name)
        else:
            merged.append((first, end - 1, name))
    return tuple(merged)


def split_pair(written: str) -> tuple[str, str]:
    """(codec of keys, codec of values) from "int2" or "int4/int2". Raises ConfigError."""
    if not isinstance(written, str):
        raise ConfigError(f"{written!r} names no codec; write it as text, such as 'int2' or 'int4/int2'")
    keys, slash, values = written.partition("/")
    for name in (keys, values) if slash else (keys,):
        read_codec(name)
    return keys, values if slash else keys


def read_layers(written: Mapping[Any, Any]) -> LayerCodecs:
    """From {"0-1": "int8", 5: "int4/int2"}. Raises ConfigError."""
    layers = []
    for key, codecs in written.items():
        match = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,6}))?", str(key))
        if match is None or not isinstance(codecs, str) or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(
                f"{shown(key)}: {shown(codecs)} is no exception for layers; write it as 3: int4 or 0-1: int8/int4"
            )
        split_pair(codecs)
        layers.append((int(match[1]), int(match[2] or match[1]), codecs))
    return tuple(layers)


def checked_layers(layers: object) -> LayerCodecs:
    """Exceptions as they are kept, from what `read_layers` takes or from triples. Raises ConfigError."""
    if isinstance(layers, Mapping):
        return read_layers(layers)
    example = "{0: 'int8', '2-5': 'int4/int2'}"
    triples: list[Any] = list_of(tuple, "layers", layers, example, ConfigError)
    if any(len(triple) != 3 for triple in triples):
        raise ConfigError(f"layers is {layers!r}; write {example}")
    return tuple(map(_checked_triple, triples))


def _checked_triple(triple: tuple[Any, Any, Any]) -> tuple[int, int, str]:
    first, last, written = triple
    split_pair(written)
    first = whole_number("first layer of an exception", first, 0, error=ConfigError)
    return first, whole_number("last layer of an exception", last, first, error=ConfigError), written


def write_layers(layers: LayerCodecs) -> dict[str, str]:
    """The inverse of `read_layers`; of two for the same layers the later remains, in its place."""
    written: dict[str, str] = {}
    for first, last, codecs in layers:
        key = str(first) if first == last else f"{first}-{last}"
        written.pop(key, None)
        written[key] = codecs
    return written
