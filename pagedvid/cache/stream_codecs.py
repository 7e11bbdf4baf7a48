"""The codecs of a stream's chunks: of its history, its sinks, and its newest chunk."""

from __future__ import annotations

from dataclasses import dataclass

from pagedvid.cache.window import Window
from pagedvid.codecs.assignment import ChunkCodecs, LayerCodecs, checked_layers
from pagedvid.codecs.page import has_steps, page_rows_for
from pagedvid.errors import ConfigError


@dataclass(frozen=True)
class StreamCodecs:
    """The codecs of a chunk by its role, each written as "int2" or, keys and values apart, "int4/int2".

    `newest`: the last committed chunk stays in it until the next is committed. `layers`: exceptions from `history`,
    and from sinks that follow it, such as {0: "int8", "2-5": "int4/int2"}.
    """

    history: str = "int2"
    sink: str | None = None
    newest: str | None = None
    layers: LayerCodecs = ()

    def __post_init__(self) -> None:
        for role in ("history", "sink", "newest"):
            try:
                ChunkCodecs.read(self.history if getattr(self, role) is None else getattr(self, role))
            except ConfigError as error:
                raise ConfigError(f"{role} codec: {error}") from None
        object.__setattr__(self, "layers", checked_layers(self.layers))

    @property
    def page_rows(self) -> int:
        """Rows of a page that suit the keys of the history."""
        return page_rows_for(self.steady.keys)

    @property
    def correction(self) -> str:
        """The mode that suits the keys of the history: measured where codes have steps; klt hardly moves the mass."""
        return "measured" if has_steps(self.steady.keys) else "off"

    @property
    def steady(self) -> ChunkCodecs:
        """Those of the history, in which most chunks are."""
        return ChunkCodecs.read(self.history, self.layers)

    def final(self, chunk_index: int, window: Window) -> ChunkCodecs:
        """The codecs in which a chunk ends up."""
        is_sink = chunk_index < window.sink_chunks
        return (self._codecs(self.sink) if is_sink else None) or self.steady

    def at_commit(self, chunk_index: int, window: Window) -> ChunkCodecs:
        """The codecs in which a chunk is first written."""
        return self._codecs(self.newest) or self.final(chunk_index, window)

    def recodes(self, chunk_index: int, window: Window) -> bool:
        """Whether a chunk changes its codec when the next one is committed (and it is still visible after that)."""
        stays = chunk_index < window.sink_chunks or window.recent_chunks > 1
        return stays and self.at_commit(chunk_index, window) != self.final(chunk_index, window)

    def all(self) -> tuple[ChunkCodecs, ...]:
        """Whatever a chunk of any role may be stored in."""
        return tuple(codecs for codecs in (self.steady, self._codecs(self.sink), self._codecs(self.newest)) if codecs)

    @staticmethod
    def _codecs(written: str | None) -> ChunkCodecs | None:
        return None if written is None else ChunkCodecs.read(written)
