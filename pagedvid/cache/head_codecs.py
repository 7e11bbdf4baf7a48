"""From what a budget gives every head (budgets/spend.py) to the codecs and look-backs of a stream."""

from __future__ import annotations

from pagedvid.budgets.spend import Spending
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.codecs.assignment import ChunkCodecs


def codecs_by_head(
    spending: Spending, rule: str, sink_codec: str | None = None, newest_codec: str | None = None
) -> StreamCodecs:
    """`rule`: the codec that page sizes and the correction follow, whether or not a head is stored in it.
    `sink_codec`, `newest_codec`: for these chunks instead of what was spent."""
    placed = [(layer, head, stored) for layer, row in enumerate(spending.heads) for head, stored in enumerate(row)]
    heads = [(layer, head, head, f"{stored.keys}/{stored.values}") for layer, head, stored in placed]
    look_back = tuple(
        (layer, head, head, stored.recent_chunks, stored.keeps_sinks)
        for layer, head, stored in placed
        if (stored.recent_chunks, stored.keeps_sinks) != spending.window
    )
    return StreamCodecs(ChunkCodecs.read(rule, heads=heads), sink_codec, newest_codec, look_back=look_back)
