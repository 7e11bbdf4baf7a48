"""The heads of one rank: what describes all KV heads, cut to those that a rank holds, and put together again.

Rank r of n holds the KV heads r * H / n to (r + 1) * H / n - 1 of every layer, and the query heads that they serve. Its
cache numbers them from 0. Nothing else in the package knows which heads those are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from pagedvid.cache.head_windows import HeadLookBacks
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.codecs.assignment import ChunkCodecs, CodecPair
from pagedvid.codecs.tables_file import Calibration
from pagedvid.errors import ConfigError

BY_HEAD = ("mean", "analysis", "deviation", "order")
"""Tensors of a calibration whose second axis is the KV heads. The spectrum is that of a whole layer: bits are allocated
by it, so that all ranks allocate alike."""


@dataclass(frozen=True)
class HeadShard:
    """KV heads `first` to `end` - 1 of every layer."""

    first: int
    end: int

    @staticmethod
    def of_rank(rank: int, num_ranks: int, num_kv_heads: int) -> HeadShard:
        """Raises ConfigError for ranks that cannot have equally many heads."""
        if num_kv_heads % num_ranks:
            allowed = ", ".join(str(n) for n in range(1, num_kv_heads + 1) if num_kv_heads % n == 0)
            raise ConfigError(
                f"{num_ranks} ranks cannot share {num_kv_heads} KV heads evenly; the number of ranks can be {allowed}"
            )
        size = num_kv_heads // num_ranks
        return HeadShard(rank * size, (rank + 1) * size)

    @property
    def num_heads(self) -> int:
        """Number of its KV heads."""
        return self.end - self.first

    def kv_slice(self) -> slice:
        """Of an axis of all KV heads."""
        return slice(self.first, self.end)

    def query_slice(self, group: int) -> slice:
        """The query heads of these KV heads, each of which has `group` query heads."""
        return slice(self.first * group, self.end * group)

    def of_spec(self, spec: CacheSpec) -> CacheSpec:
        """The spec of the rank's cache. Raises ConfigError for a correction that looks at all heads together."""
        if spec.correction_unit == "page" and self.num_heads < spec.num_kv_heads:
            raise ConfigError(
                'correction_unit is "page", which cuts a layer into runs of pages by all its heads together; a rank '
                'has some of them only. Use "chunk"'
            )
        group = spec.query_heads // spec.num_kv_heads
        return replace(
            spec,
            num_kv_heads=self.num_heads,
            num_query_heads=self.num_heads * group,
            codecs=self.of_codecs(spec.codecs),
            page_rows=spec.shape.page_rows,
        )

    def of_codecs(self, codecs: StreamCodecs) -> StreamCodecs:
        """How the rank's heads are stored."""
        history, sink, newest = (self._of_stored(stored) for stored in (codecs.history, codecs.sink, codecs.newest))
        assert history is not None
        return StreamCodecs(history, sink, newest, codecs.layers, tuple(self._of_look_backs(codecs.look_back)))

    def of_chunk_codecs(self, codecs: ChunkCodecs) -> ChunkCodecs:
        """The same for one chunk."""
        heads = (
            (layer, *inside, stored)
            for layer, first, last, stored in codecs.heads
            if (inside := self._inside(first, last)) is not None
        )
        return ChunkCodecs(codecs.pair, codecs.layers, tuple(heads))

    def of_calibration(self, calibration: Calibration) -> Calibration:
        """The tables of the rank's heads, without a profile, which has been spent before (budgets/spend.py)."""
        kinds = {
            name: tensor[:, self.kv_slice()].contiguous() if name.partition(".")[2] in BY_HEAD else tensor
            for name, tensor in calibration.tensors.items()
            if name.partition(".")[2] in (*BY_HEAD, "spectrum")
        }
        return replace(calibration, num_kv_heads=self.num_heads, tensors=kinds)

    def _of_stored(self, stored: str | CodecPair | ChunkCodecs | None) -> str | CodecPair | ChunkCodecs | None:
        return self.of_chunk_codecs(stored) if isinstance(stored, ChunkCodecs) else stored

    def _of_look_backs(self, look_back: HeadLookBacks) -> Iterator[tuple[int, int, int, int, bool]]:
        for layer, first, last, recent_chunks, keeps_sinks in look_back:
            if (inside := self._inside(first, last)) is not None:
                yield layer, *inside, recent_chunks, keeps_sinks

    def _inside(self, first: int, last: int) -> tuple[int, int] | None:
        """Those of the heads `first` to `last` that the rank holds, as it numbers them."""
        first, last = max(first, self.first), min(last, self.end - 1)
        return (first - self.first, last - self.first) if first <= last else None


def join_codecs(parts: Sequence[StreamCodecs], num_heads: int) -> StreamCodecs:
    """How all heads are stored, from how every rank's `num_heads` are: the inverse of `HeadShard.of_codecs`."""

    def join(stored: Sequence[str | CodecPair | ChunkCodecs | None]) -> str | CodecPair | ChunkCodecs | None:
        by_head = [each for each in stored if isinstance(each, ChunkCodecs)]
        return join_chunk_codecs(by_head, num_heads) if by_head else stored[0]

    history = join([part.history for part in parts])
    assert history is not None
    look_back = tuple(
        (layer, first + rank * num_heads, last + rank * num_heads, recent_chunks, keeps_sinks)
        for rank, part in enumerate(parts)
        for layer, first, last, recent_chunks, keeps_sinks in part.look_back
    )
    sink, newest = join([part.sink for part in parts]), join([part.newest for part in parts])
    return StreamCodecs(history, sink, newest, parts[0].layers, look_back)


def join_chunk_codecs(parts: Sequence[ChunkCodecs], num_heads: int) -> ChunkCodecs:
    """The same for one chunk: the inverse of `HeadShard.of_chunk_codecs`."""
    heads = tuple(
        (layer, first + rank * num_heads, last + rank * num_heads, stored)
        for rank, part in enumerate(parts)
        for layer, first, last, stored in part.heads
    )
    return ChunkCodecs(parts[0].pair, parts[0].layers, heads)
