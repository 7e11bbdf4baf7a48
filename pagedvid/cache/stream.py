"""A stream: one video being generated, and the chunks that each of its branches keeps."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pagedvid.cache.chunk import Chunk
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Commit, Window
from pagedvid.errors import StateError


@dataclass
class BranchHistory:
    """The live chunks of one branch, by chunk index, ascending: sinks, pins, recent ones.

    sink 1, recent 2, chunk 3 pinned, 8 committed:    { 0: sink,  3: pin,  6: recent,  7: recent }
    """

    window: Window
    codecs: StreamCodecs
    shape: KVShape
    chunks: dict[int, Chunk] = field(default_factory=dict)
    pinned: frozenset[int] = frozenset()
    dropped: frozenset[int] = frozenset()
    """Chunks dropped before the window would have dropped them."""
    num_committed: int = 0
    num_committed_tokens: int = 0

    def append(self, chunk: Chunk) -> None:
        """Adds the next chunk and slides the windows."""
        self.chunks[chunk.index] = chunk
        self.num_committed += 1
        self.num_committed_tokens += chunk.num_tokens
        self.slide()

    def slide(self) -> None:
        """Removes every chunk that is neither in the window nor pinned. Chunks that are in the window and not pinned
        lose the heads whose own window they have left."""
        for index, chunk in list(self.chunks.items()):
            if index in self.pinned:
                continue
            if self.window.keeps(index, self.num_committed):
                codecs = self.codecs.thinned(chunk.codecs, index, self.num_committed - 1 - index, self.window)
                self.chunks[index] = chunk.thinned(codecs, self.shape)
            else:
                del self.chunks[index]

    def drop(self, indices: tuple[int, ...]) -> None:
        """Removes live chunks that the window would still keep."""
        self.dropped |= set(indices)
        for index in set(indices):
            del self.chunks[index]

    def exchange(self, chunk: Chunk) -> None:
        """Replaces the chunk that has the index of `chunk`."""
        self.chunks[chunk.index] = chunk

    def is_settled(self, index: int) -> bool:
        """Whether a live chunk has reached its final codecs: all have but the newest, if that has its own."""
        at_commit, final = (each(index, self.window) for each in (self.codecs.at_commit, self.codecs.final))
        return index < self.num_committed - 1 or at_commit == final

    def pin_pages(self, index: int) -> int:
        """Pages that a live chunk needs if it is pinned now, before and after it settles."""
        chunk = self.chunks[index]
        if self.is_settled(index):
            return chunk.num_pages
        return max(chunk.num_pages, self.shape.chunk_pages(chunk.num_tokens, self.codecs.final(index, self.window)))

    def permanent(self) -> Iterator[Chunk]:
        """What no window will drop: settled pins, and settled sinks for the heads that keep sinks."""
        for index, chunk in self.chunks.items():
            if not self.is_settled(index):
                continue
            if index in self.pinned:
                yield chunk
            elif index < self.window.sink_chunks:
                last_age = self.window.recent_chunks
                yield chunk.thinned(self.codecs.thinned(chunk.codecs, index, last_age, self.window), self.shape)

    def select(self, indices: tuple[int, ...] | None) -> tuple[Chunk, ...]:
        """The chunks with these indices; None: all live ones. Raises StateError for a chunk that is not live."""
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
    """What no window will drop (`BranchHistory.permanent`), as the budget counts it."""
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

    @property
    def pin_pages(self) -> int:
        """Pages that its pins need, now or once they settle."""
        histories = self.branches.values()
        return sum(history.pin_pages(index) for history in histories for index in history.pinned)

    @property
    def permanent_pages(self) -> int:
        """Pages of `permanent`, shared ones included."""
        return sum(part.num_pages for part in self.permanent)
