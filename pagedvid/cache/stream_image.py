"""A stream as plain data on the host: its pages as bytes, and all that a cache must know to continue it elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from pagedvid.cache.sizes import KVShape
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Commit, Window
from pagedvid.codecs.assignment import ChunkCodecs


@dataclass(frozen=True, eq=False)
class ChunkImage:
    """One live chunk of a branch. Axes: P pages, B bytes of a page, L layers, H KV heads, D head_dim."""

    index: int
    first_token: int
    position: int
    num_tokens: int
    codecs: ChunkCodecs
    """Of the tables that the chunk still has."""
    records_PB: Tensor
    """uint8 on the CPU, in the order of the chunk's page table."""
    alpha_LH: Tensor | None
    """float32 on the CPU."""
    variance_LHD: Tensor | None
    """bfloat16 on the CPU."""
    runs: dict[int, tuple[int, ...]]
    digests: tuple[bytes, ...] | None
    ropes: dict[int, Any] = field(default_factory=dict)
    """Rotary tables by layer, or None for keys without positions. Not in files: see `StreamImage.with_model`."""
    tag: Any = None
    """Not in files either."""

    @property
    def num_pages(self) -> int:
        """Number of its pages."""
        return len(self.records_PB)

    @property
    def num_bytes(self) -> int:
        """Bytes of its tensors."""
        tensors = (self.records_PB, self.alpha_LH, self.variance_LHD)
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


@dataclass(frozen=True, eq=False)
class BranchImage:
    """One branch of a stream."""

    chunks: tuple[ChunkImage, ...]
    """The live ones, by index."""
    pinned: frozenset[int]
    dropped: frozenset[int]
    num_committed: int
    num_committed_tokens: int


@dataclass(frozen=True, eq=False)
class StreamImage:
    """A whole stream."""

    shape: KVShape
    """Of the cache that it comes from; another one must have the same."""
    correction_unit: str
    """Likewise."""
    window: Window
    codecs: StreamCodecs
    chunk_tokens: int
    max_chunks: int | None
    commits: tuple[Commit, ...] | None
    branches: dict[str, BranchImage]

    @property
    def num_pages(self) -> int:
        """Number of pages of all its chunks."""
        return sum(chunk.num_pages for branch in self.branches.values() for chunk in branch.chunks)

    @property
    def num_bytes(self) -> int:
        """Bytes of all its tensors, which are in host memory."""
        return sum(chunk.num_bytes for branch in self.branches.values() for chunk in branch.chunks)

    def with_model(self, rope: Any, tag: Callable[[str, int], Any]) -> StreamImage:
        """The image of a file with what files leave out: `rope`, the model's `RopeTables` or None, for all layers, and
        the tag of every chunk, by branch and chunk index."""
        ropes = dict.fromkeys(range(self.shape.num_layers), rope)
        return self.with_chunks(lambda branch, chunk: replace(chunk, ropes=ropes, tag=tag(branch, chunk.index)))

    def without_objects(self) -> StreamImage:
        """What other processes can take: without rotary tables and tags, which are objects of this one."""
        return self.with_chunks(lambda _, chunk: replace(chunk, ropes={}, tag=None))

    def with_chunks(self, change: Callable[[str, ChunkImage], ChunkImage]) -> StreamImage:
        """The image with every chunk replaced by what `change` makes of it, given its branch."""
        branches = {
            name: replace(branch, chunks=tuple(change(name, chunk) for chunk in branch.chunks))
            for name, branch in self.branches.items()
        }
        return replace(self, branches=branches)
