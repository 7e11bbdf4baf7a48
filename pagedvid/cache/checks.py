"""Validation of the query ranges of a step, before any page is taken."""

from __future__ import annotations

from collections.abc import Sequence

from pagedvid.cache.plan import QueryRange, next_position, tokens_of
from pagedvid.errors import ShapeError, StateError


def check_ranges(ranges: Sequence[QueryRange]) -> None:
    """Raises StateError or ShapeError for a request that cannot be planned; takes and changes nothing."""
    if not ranges:
        raise StateError("a step needs at least one query range")
    earlier: set[tuple[int, str]] = set()
    committing: set[tuple[int, str]] = set()
    for number, asked in enumerate(ranges):
        _check_tokens(number, asked)
        others, visible = asked.sees_ranges, asked.visible or ()
        if len(set(others)) < len(others) or any(not 0 <= other < len(ranges) or other == number for other in others):
            raise StateError(
                f"range {number} sees ranges {others}; allowed are others from 0 to {len(ranges) - 1}, each once"
            )
        if len(set(visible)) < len(visible):
            raise StateError(f"range {number} names a chunk twice: {visible}; give each once")
        key, appends = (asked.stream.id, asked.branch), asked.commit and asked.replaces is None
        if (asked.commit and key in committing) or (appends and key in earlier):
            raise StateError(
                f"range {number} commits a chunk of stream {key[0]}, branch {key[1]!r}, but an earlier range belongs "
                "to it too; commit one chunk per step, and before the chunks in flight"
            )
        if asked.commit:
            committing.add(key)
        if asked.replaces is None and (asked.position is None or asked.commit):
            earlier.add(key)


def _check_tokens(number: int, asked: QueryRange) -> None:
    stream, history, num_tokens = asked.stream, asked.stream.history(asked.branch), tokens_of(asked)
    if not 1 <= num_tokens <= stream.chunk_tokens:
        raise ShapeError(
            f"range {number} has {num_tokens} tokens; stream {stream.id} was opened for 1 to {stream.chunk_tokens}"
        )
    if asked.replaces is not None:
        (old,) = history.select((asked.replaces,))
        if num_tokens != old.num_tokens:
            raise ShapeError(
                f"range {number} has {num_tokens} tokens; chunk {old.index}, which it replaces, has {old.num_tokens}"
            )
        return
    if history.window.positions == "given" and asked.position is None:
        raise StateError(
            f"range {number} has no position, but those of stream {stream.id} are given, range by range; give it one"
        )
    if asked.commit:
        _check_commit(asked, num_tokens)


def _check_commit(asked: QueryRange, num_tokens: int) -> None:
    stream, history = asked.stream, asked.stream.history(asked.branch)
    if history.num_committed == stream.max_chunks:
        raise StateError(
            f"stream {stream.id} was opened for max_chunks={stream.max_chunks}, all of which are committed; extend it"
        )
    if history.window.positions != "given" and asked.position not in (None, next_position(history)):
        raise StateError(
            f"a commit at position {asked.position} would be read at {next_position(history)}; leave position out"
        )
    if stream.commits is None:
        return
    planned = stream.commits[history.num_committed]
    late = [index for index in planned.drops if index in history.chunks]
    if num_tokens != planned.num_tokens or late:
        raise StateError(
            f"stream {stream.id} was opened to commit {planned.num_tokens} tokens as chunk {history.num_committed} "
            f"after dropping chunks {list(planned.drops)}; it commits {num_tokens} and still keeps {late}"
        )
