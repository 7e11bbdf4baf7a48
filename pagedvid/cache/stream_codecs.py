"""How a stream's chunks are stored as they age: codecs of its history, its sinks and its newest chunk, and which heads
keep them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from pagedvid.cache.head_windows import HeadLookBacks, HeadWindow, read_look_backs, spans_by_window
from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import ChunkCodecs, CodecPair, HeadSpan, LayerCodecs, read_layers
from pagedvid.errors import ConfigError


@dataclass(frozen=True)
class StreamCodecs:
    """Codecs are given as "int2" or, for keys and values separately, "int4/int2", and kept as a `CodecPair`; or, where
    heads differ, as `ChunkCodecs`.

    `history`: all chunks but those below. `sink`: sinks; None: as `history`. `newest`: the last committed chunk, until
    the next one is committed; None: no codec of its own. `layers`: exceptions from `history`, and from sinks that
    follow it, such as {0: "int8", "2-5": "int4/int2"}. `look_back`: KV heads that keep less than the stream's window
    does, (layer, first head, last head, recent_chunks, keeps_sinks).
    """

    history: str | CodecPair | ChunkCodecs = "int2"
    sink: str | CodecPair | ChunkCodecs | None = None
    newest: str | CodecPair | ChunkCodecs | None = None
    layers: Mapping[Any, Any] | LayerCodecs = ()
    look_back: HeadLookBacks = ()
    _thinned: dict[tuple[ChunkCodecs, tuple[HeadWindow, ...]], ChunkCodecs] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )
    """Results of `thinned`, each equal one once, so that comparing them is comparing objects."""

    def __post_init__(self) -> None:
        """Raises ConfigError for an unknown codec or layer, for a look-back that no head can have, and for heads that
        `newest` does not keep but others do."""
        object.__setattr__(self, "look_back", read_look_backs(self.look_back))
        for name in ("history", "sink", "newest"):
            written = getattr(self, name)
            if isinstance(written, ChunkCodecs) or (written is None and name != "history"):
                continue
            try:
                object.__setattr__(self, name, CodecPair.read(written))
            except ConfigError as error:
                raise ConfigError(f"{name} codec: {error}") from None
        object.__setattr__(self, "layers", read_layers(self.layers))
        later = (self.steady, self._sink or self.steady)
        for layer, first, last, stored in () if self._newest is None else self._newest.heads:
            runs = (run for codecs in later for run in codecs.runs(layer, slice(first, last + 1)))
            if stored is None and any(pair is not None for _, pair in runs):
                raise ConfigError(
                    f"newest keeps nothing in layer {layer}, heads {first} to {last}, of chunks that these heads keep "
                    "later; give newest a codec for them"
                )

    @property
    def page_rows(self) -> int:
        """Rows of a page that suit the keys of the history."""
        return self.steady.keys.page_rows

    @property
    def correction(self) -> str:
        """The mode that suits the keys of the history: "measured" where they have step sizes, "off" for others such as
        klt, which hardly changes the attention mass."""
        return "measured" if self.steady.keys.has_step_sizes else "off"

    @cached_property
    def steady(self) -> ChunkCodecs:
        """Codecs of the history, in which most chunks are stored."""
        return ChunkCodecs.read(self.history, self.layers)

    def final(self, chunk_index: int, window: Window) -> ChunkCodecs:
        """The codecs in which a chunk is finally stored."""
        is_sink = chunk_index < window.sink_chunks
        return (self._sink if is_sink else None) or self.steady

    def at_commit(self, chunk_index: int, window: Window) -> ChunkCodecs:
        """The codecs in which a chunk is first written."""
        return self._newest or self.final(chunk_index, window)

    def recodes(self, chunk_index: int, window: Window) -> bool:
        """Whether a chunk changes its codec when the next one is committed (and it is still visible after that)."""
        stays = chunk_index < window.sink_chunks or window.recent_chunks > 1
        return stays and self.at_commit(chunk_index, window) != self.final(chunk_index, window)

    def ages(self, window: Window) -> tuple[int, ...]:
        """The ages, ascending from 1, from which on a live chunk is stored in other codecs or by fewer heads."""
        ends = {min(each.recent_chunks, window.recent_chunks) for each in self._spans}
        return tuple(sorted({1, *ends}))

    def stored(self, chunk_index: int, age: int, window: Window) -> ChunkCodecs:
        """How a live chunk of that age is stored; that of the newest is 0."""
        if age == 0:
            return self.at_commit(chunk_index, window)
        return self.thinned(self.final(chunk_index, window), chunk_index, age, window)

    def thinned(self, codecs: ChunkCodecs, chunk_index: int, age: int, window: Window) -> ChunkCodecs:
        """`codecs` of a chunk without the heads whose window it has left at that age."""
        passed = tuple(each for each in self._spans if not each.keeps(chunk_index, age, window))
        if not passed:
            return codecs
        if (codecs, passed) not in self._thinned:
            thinner = codecs.without(span for each in passed for span in self._spans[each])
            self._thinned[codecs, passed] = self._thinned.setdefault((thinner, ()), thinner)
        return self._thinned[codecs, passed]

    def all(self) -> tuple[ChunkCodecs, ...]:
        """All codecs in which a chunk may be stored."""
        return tuple(codecs for codecs in (self.steady, self._sink, self._newest) if codecs)

    @cached_property
    def _spans(self) -> dict[HeadWindow, Sequence[HeadSpan]]:
        return spans_by_window(self.look_back)

    @cached_property
    def _sink(self) -> ChunkCodecs | None:
        return None if self.sink is None else ChunkCodecs.read(self.sink)

    @cached_property
    def _newest(self) -> ChunkCodecs | None:
        return None if self.newest is None else ChunkCodecs.read(self.newest)
