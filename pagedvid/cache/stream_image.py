"""A stream as plain data on the host: its pages as bytes, and all that a cache must know to continue it elsewhere.

Tags and rotary tables are not part of it: the model's schedule and the model itself give them again.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

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

    window: Window
    codecs: StreamCodecs
    chunk_tokens: int
    max_chunks: int | None
    commits: tuple[Commit, ...] | None
    branches: dict[str, BranchImage]

    @property
    def num_bytes(self) -> int:
        """Bytes of all its tensors, which are in host memory."""
        return sum(chunk.num_bytes for branch in self.branches.values() for chunk in branch.chunks)
