"""Pages and bytes of a stream whose chunks age: at its peak, which admission reserves, and between two commits.

Chunks of one age are stored alike (`StreamCodecs.stored`), so a window of any length is a sum over the few ages at
which heads let go.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Commit, Window


@lru_cache(maxsize=1024, typed=True)
def peak_pages(
    shape: KVShape, window: Window, codecs: StreamCodecs, chunk_tokens: int, max_commits: int | None = None
) -> int:
    """Most pages that one branch of a stream ever holds.

    Exact, and as fast for a window of a billion chunks: from one commit to the next, pages change by the same number
    except where sinks end, where a window is full, that of the stream or of some heads, and at the last commit; so it
    is enough to look at these. `max_commits`: the stream's known number of commits, None when it is open-ended.
    """
    full = window.max_chunks + 2
    last = (full if max_commits is None else min(max_commits, full)) - 1
    spans = _age_spans(shape, window, codecs, chunk_tokens)
    lengths = (0, *(span.first for span in spans), window.recent_chunks)
    changes = {last, *(start + length for start in (0, window.sink_chunks) for length in lengths)}
    commits = {change + i for change in changes for i in (-1, 0, 1, 2)}
    return max(
        (_pages_in_commit(shape, window, codecs, chunk_tokens, spans, i) for i in commits if 0 <= i <= last), default=0
    )


class _AgeSpan(NamedTuple):
    """Chunks from the age `first` up to that of the next span, which are stored alike."""

    first: int
    sink_pages: int
    recent_pages: int


def _age_spans(shape: KVShape, window: Window, codecs: StreamCodecs, chunk_tokens: int) -> list[_AgeSpan]:
    def pages(index: int, age: int) -> int:
        return shape.chunk_pages(chunk_tokens, codecs.stored(index, age, window))

    return [_AgeSpan(age, pages(0, age), pages(window.sink_chunks, age)) for age in codecs.ages(window)]


def _pages_in_commit(
    shape: KVShape, window: Window, codecs: StreamCodecs, chunk_tokens: int, spans: Sequence[_AgeSpan], i: int
) -> int:
    """Pages that exist while chunk i is committed, all chunks being equally long; see `planned_peak_pages`."""

    def pages(index: int, age: int) -> int:
        return shape.chunk_pages(chunk_tokens, codecs.stored(index, age, window))

    if i == 0:
        return pages(0, 0)
    total = pages(i, 0) + pages(i - 1, 0) + (pages(i - 1, 1) if codecs.recodes(i - 1, window) else 0)
    ends = [*(span.first for span in spans[1:]), i]
    for span, end in zip(spans, ends, strict=True):
        start, stop = max(0, i - end), i - span.first  # the chunks of these ages, while chunk i - 1 has age 0
        num_sinks = max(0, min(stop, window.sink_chunks) - start)
        num_recent = max(0, stop - max(start, window.sink_chunks, i - window.recent_chunks))
        total += num_sinks * span.sink_pages + num_recent * span.recent_pages
    return total


def planned_peak_pages(shape: KVShape, window: Window, codecs: StreamCodecs, commits: Sequence[Commit]) -> int:
    """Most pages that one branch of a stream ever holds while exactly these chunks are committed and dropped.

    While chunk i is committed, everything visible before is still being read. The pages of chunk i come on top, and, if
    chunk i - 1 now leaves its `newest` codec, the pages of its final form. Chunks may differ in length and be dropped
    before the window would drop them.
    """
    held: dict[int, int] = {}
    total = peak = 0

    def pages(index: int, age: int) -> int:
        return shape.chunk_pages(commits[index].num_tokens, codecs.stored(index, age, window))

    for i, commit in enumerate(commits):
        total -= sum(held.pop(index, 0) for index in commit.drops)
        held[i] = pages(i, 0)
        total += held[i]
        is_recoded = i - 1 in held and codecs.recodes(i - 1, window)
        peak = max(peak, total + (pages(i - 1, 1) if is_recoded else 0))
        total -= sum(held.pop(index, 0) for index in window.leaves(i + 1))
        for age in codecs.ages(window):
            if i - age in held:
                before, held[i - age] = held[i - age], pages(i - age, age)
                total += held[i - age] - before
    return peak


def full_window_bytes(shape: KVShape, window: Window, codecs: StreamCodecs, chunk_tokens: int) -> int:
    """Bytes that one branch of a long video holds between two commits, everything counted."""

    def stored(index: int, age: int) -> int:
        return shape.stored_bytes(chunk_tokens, codecs.stored(index, age, window))

    oldest, not_sink = window.recent_chunks, window.sink_chunks
    recent = sum((end - age) * stored(not_sink, age) for age, end in pairwise((*codecs.ages(window), oldest)))
    return window.sink_chunks * stored(0, oldest) + recent + stored(not_sink, 0)


def window_bits_per_value(shape: KVShape, window: Window, codecs: StreamCodecs, chunk_tokens: int) -> float:
    """The same in bits per key or value element of the chunks in the window, whether heads keep these or not."""
    num_bytes = full_window_bytes(shape, window, codecs, chunk_tokens)
    return 16 * num_bytes / (window.max_chunks * shape.bf16_bytes(chunk_tokens))


def stream_bytes(
    shape: KVShape,
    window: Window,
    codecs: StreamCodecs,
    chunk_tokens: int,
    num_branches: int = 1,
    max_commits: int | None = None,
) -> int:
    """Bytes of pages that `open` reserves for one stream."""
    return shape.page_bytes * num_branches * peak_pages(shape, window, codecs, chunk_tokens, max_commits)
