"""What an open stream is going to commit: read when it opens and when its plan changes."""

from __future__ import annotations

from collections.abc import Sequence

from pagedvid.arguments import list_of, whole_number
from pagedvid.cache.stream import Stream
from pagedvid.cache.window import Commit
from pagedvid.errors import StateError

Plan = tuple[int | None, tuple[Commit, ...] | None]
"""(most chunks of a branch, None when open-ended; exactly its commits, None when unknown)."""


def read_plan(max_chunks: int | None, commits: Sequence[Commit] | None) -> Plan:
    """Both as `CacheManager.open` takes them. Raises ShapeError."""
    if commits is not None:
        plan = tuple(list_of(Commit, "commits", commits, "[Commit(num_tokens)]"))
        return len(plan), plan
    return None if max_chunks is None else whole_number("max_chunks", max_chunks, 0), None


def require_same_past(stream: Stream, max_chunks: int | None, commits: tuple[Commit, ...] | None) -> None:
    """Raises StateError for a plan that the chunks committed so far contradict.

    Every live chunk must be as the plan has it, so that the stream never holds more than the plan's peak.
    """
    if max_chunks is not None and max_chunks < stream.num_committed:
        raise StateError(
            f"a plan of {max_chunks} chunks is too short for stream {stream.id}, which has committed "
            f"{stream.num_committed}"
        )
    if commits is None:
        return
    for branch, history in stream.branches.items():
        past = commits[: history.num_committed]
        gone = {index for commit in past for index in commit.drops}
        for chunk in history.chunks.values():
            planned = past[chunk.index].num_tokens
            if chunk.index in gone or planned != chunk.num_tokens:
                raise StateError(
                    f"the plan has chunk {chunk.index} with {planned} tokens{', dropped' * (chunk.index in gone)}; "
                    f"branch {branch!r} of stream {stream.id} keeps it with {chunk.num_tokens}. Begin the plan with "
                    "what has been committed"
                )
