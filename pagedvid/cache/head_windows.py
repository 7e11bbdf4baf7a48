"""KV heads that keep chunks for a shorter time than their stream's window does.

window 1 sink + 4 recent, 8 committed            chunk    0     4  5  6  7
    heads without an exception                            x     x  x  x  x
    HeadWindow(recent_chunks=2, keeps_sinks=True)         x           x  x
    HeadWindow(recent_chunks=1, keeps_sinks=False)                       x

Positions, tags and the set of live chunks depend on the stream's window alone: a head does not see a chunk that it has
dropped, but the chunks that it sees keep their positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pagedvid.arguments import instance_of, list_of, whole_number
from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import HeadSpan, joined_exceptions
from pagedvid.errors import ConfigError
from pagedvid.shown import shown

HeadLookBacks = tuple[tuple[int, int, int, int, bool], ...]
"""Exceptions from the window: (layer, first KV head, last KV head, recent chunks, whether they keep sinks). Where two
name the same head, the later one counts."""


@dataclass(frozen=True)
class HeadWindow:
    """What some KV heads keep: the newest chunks, never more than the stream's window, and the sinks if they want."""

    recent_chunks: int
    keeps_sinks: bool

    def keeps(self, chunk_index: int, age: int, window: Window) -> bool:
        """Whether the heads keep a live chunk of that age; that of the newest is 0."""
        is_sink = chunk_index < window.sink_chunks
        return age < min(self.recent_chunks, window.recent_chunks) or (is_sink and self.keeps_sinks)


def read_look_backs(written: object) -> HeadLookBacks:
    """The canonical form of [(layer, first head, last head, recent_chunks, keeps_sinks), ...]: ascending, without
    overlaps, equal neighbours joined, so that equal look-backs compare equal. Raises ConfigError."""
    example = "[(0, 2, 3, 1, False), (5, 0, 0, 2, True)]"
    given: list[Any] = list_of(tuple, "look_back", written, example, ConfigError)
    if any(len(each) != 5 for each in given):
        raise ConfigError(f"look_back is {shown(written)}; write {example}")
    by_layer: dict[int, list[tuple[int, int, HeadWindow | None]]] = {}
    for layer, first, last, kept in map(_checked, given):
        by_layer.setdefault(layer, []).append((first, last, kept))
    return tuple(
        (layer, first, last, kept.recent_chunks, kept.keeps_sinks)
        for layer, exceptions in sorted(by_layer.items())
        for first, last, kept in joined_exceptions(None, exceptions)
        if kept is not None
    )


def _checked(given: tuple[Any, ...]) -> tuple[int, int, int, HeadWindow]:
    layer, first, last, recent_chunks, keeps_sinks = given
    layer = whole_number("layer of a look_back", layer, 0, error=ConfigError)
    first = whole_number("first head of a look_back", first, 0, error=ConfigError)
    last = whole_number("last head of a look_back", last, first, error=ConfigError)
    recent_chunks = whole_number("recent_chunks of a look_back", recent_chunks, 1, error=ConfigError)
    keeps_sinks = instance_of(bool, "keeps_sinks of a look_back", keeps_sinks, "True or False", ConfigError)
    return layer, first, last, HeadWindow(recent_chunks, keeps_sinks)


def spans_by_window(look_back: HeadLookBacks) -> dict[HeadWindow, Sequence[HeadSpan]]:
    """The heads of every distinct window in `look_back`."""
    spans: dict[HeadWindow, list[HeadSpan]] = {}
    for layer, first, last, recent_chunks, keeps_sinks in look_back:
        spans.setdefault(HeadWindow(recent_chunks, keeps_sinks), []).append((layer, first, last))
    return dict(spans)
