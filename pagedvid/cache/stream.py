"""A stream: one video being generated, and the chunks that each of its branches keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pagedvid.cache.chunk import Chunk
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Commit, Window
from pagedvid.errors import StateError


@dataclass
class BranchHistory:
    """The live chunks of one branch, by chunk index, ascending: sinks, pins, recent ones.

    sink 1, recent 2, chunk 3 pinned, 8 committed:    { 0: sink,  3: pin,  6: recent,  7: recent }
    """

    window: Window
    chunks: dict[int, Chunk] = field(default_factory=dict)
    pinned: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()
    """Chunks dropped before the window would have dropped them."""
    num_committed: int = 0
    num_committed_tokens: int = 0

    def append(self, chunk: Chunk) -> list[Chunk]:
        """Adds the next chunk and slides the window; returns the chunks that left it."""
        self.chunks[chunk.index] = chunk
        self.num_committed += 1
        self.num_committed_tokens += chunk.num_tokens
        return self.slide()

    def slide(self) -> list[Chunk]:
        """Removes and returns every chunk that neither the window nor a pin keeps."""
        leaving = [
            index
            for index in self.chunks
            if index not in self.pinned and not self.window.keeps(index, self.num_committed)
        ]
        return [self.chunks.pop(index) for index in leaving]

    def drop(self, indices: tuple[int, ...]) -> list[Chunk]:
        """Removes and returns chunks that the window would still keep."""
        self.dropped |= set(indices)
        return [self.chunks.pop(index) for index in indices]

    def exchange(self, chunk: Chunk) -> Chunk:
        """Replaces the chunk that has the index of `chunk`; returns the old one."""
        old, self.chunks[chunk.index] = self.chunks[chunk.index], chunk
        return old

    def select(self, indices: tuple[int, ...] | None) -> tuple[Chunk, ...]:
        """The chunks with these indices, or all live ones. Raises StateError for a chunk that is not live."""
        if indices is None:
            return tuple(self.chunks.values())
        missing = [index for index in indices if index not in self.chunks]
        if missing:
            raise StateError(
                f"chunks {missing} are not kept; the live chunks are {list(self.chunks)}. Widen the window or pin them."
            )
        return tuple(self.chunks[index] for index in indices)

    def copy(self) -> BranchHistory:
        """A separate history over the same chunks."""
        return replace(self, chunks=dict(self.chunks))


@dataclass(eq=False, repr=False)
class Stream:
    """A handle that `CacheManager.open` returns. Read it freely; change it through the manager only."""

    id: int
    window: Window
    codecs: StreamCodecs
    chunk_tokens: int
    """Most tokens of one chunk; a commit may bring fewer."""
    max_chunks: int | None
    """Most chunks that will be committed; None when open-ended."""
    commits: tuple[Commit, ...] | None
    """Exactly what each branch is going to commit and drop; None: chunks of chunk_tokens, dropped by the window."""
    branches: dict[str, BranchHistory]
    base_peak_pages: int
    """Most pages it ever holds, without pins."""
    peak_pages: int
    """Most pages it ever holds, pins included."""
    permanent: tuple[Chunk, ...] = ()
    """Its sinks and pins that have reached their final codec."""
    is_busy: bool = False
    """Inside an open step."""
    is_released: bool = False

    def __repr__(self) -> str:
        state = "released" if self.is_released else f"{self.num_committed} chunks committed"
        return f"Stream({self.id}, {state})"

    def history(self, branch: str) -> BranchHistory:
        """The history of one branch. Raises StateError for an unknown branch."""
        if not isinstance(branch, str) or branch not in self.branches:
            raise StateError(
                f"stream {self.id} has no branch {branch!r}; it was opened with {', '.join(self.branches)}"
            )
        return self.branches[branch]

    def chunks(self) -> Iterator[Chunk]:
        """All live chunks of all branches."""
        for history in self.branches.values():
            yield from history.chunks.values()

    @property
    def held_pages(self) -> int:
        """Pages of all live chunks, shared ones included."""
        return sum(chunk.num_pages for chunk in self.chunks())

    @property
    def num_committed(self) -> int:
        """Chunks committed in the branch that has the most."""
        return max(history.num_committed for history in self.branches.values())

    def permanent_chunks(self) -> tuple[Chunk, ...]:
        """Sinks and pins that have reached their final codec: the sliding window never drops them."""
        return tuple(
            chunk
            for history in self.branches.values()
            for chunk in history.chunks.values()
            if (chunk.index < self.window.sink_chunks or chunk.index in history.pinned)
            and chunk.codecs == self.codecs.final(chunk.index, self.window)
        )
