"""Every integer that memory depends on. Pure functions: the estimate shown to users, the reservation at admission and
the allocation at commit all come from here, so they cannot disagree.

A page is a fixed number of bytes that holds tokens of one KV head of one layer: 36 rows of D bytes (D = head_dim).

    | 32 rows of codes ....................................... | step fp16 [D] | zero fp16 [D] |
      int2: 4 tokens in a byte -> 128 tokens                     2 rows          2 rows
      int4: 2 tokens in a byte ->  64 tokens
      int8: 1 token  in a byte ->  32 tokens
      bf16: no steps, all 36 rows are values -> 18 tokens;  fp32: 9 tokens

Pages of every codec have the same size, so chunks of different precision share one pool.
K and V are two tensors indexed by the same page id: one page id stands for `2 * page_bytes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pagedvid.errors import ConfigError

CODE_ROWS = 32
METADATA_ROWS = 4
PAGE_ROWS = CODE_ROWS + METADATA_ROWS
BITS_PER_VALUE = {"fp32": 32, "bf16": 16, "int8": 8, "int4": 4, "int2": 2}
ALPHA_BYTES = 4
"""A measured correction factor is one float32 per (layer, KV head, chunk)."""


def page_bytes(head_dim: int) -> int:
    """Bytes of one page of K (or of V)."""
    return PAGE_ROWS * head_dim


def page_tokens(codec: str) -> int:
    """Tokens that one page holds."""
    bits = BITS_PER_VALUE[codec]
    rows = CODE_ROWS if is_quantized(codec) else PAGE_ROWS
    return rows * 8 // bits


def is_quantized(codec: str) -> bool:
    """Whether pages of the codec carry step sizes, and so need the correction."""
    return BITS_PER_VALUE[codec] <= 8


def pages_for_tokens(num_tokens: int, codec: str) -> int:
    """Pages of one (layer, KV head) for `num_tokens` tokens; the last may be partly filled."""
    return -(-num_tokens // page_tokens(codec))


def padding_waste_ratio(num_tokens: int, codec: str) -> float:
    """Share of the page space of a chunk that holds no token."""
    return 1.0 - num_tokens / (pages_for_tokens(num_tokens, codec) * page_tokens(codec))


def pages_in_memory(memory_bytes: int, head_dim: int) -> int:
    """Page ids (a K page and a V page each) that fit in `memory_bytes`."""
    return memory_bytes // (2 * page_bytes(head_dim))


@dataclass(frozen=True)
class KVShape:
    """The keys and values of one model: how many (layer, KV head) tables there are and how wide a token is."""

    num_layers: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.head_dim % 2:
            raise ConfigError(f"head_dim is {self.head_dim}; it must be even (rotary pairs, fp16 steps)")

    @property
    def num_tables(self) -> int:
        """Pairs of (layer, KV head)."""
        return self.num_layers * self.num_kv_heads

    def chunk_pages(self, num_tokens: int, codec: str) -> int:
        """Page ids of one chunk, over all layers and KV heads."""
        return self.num_tables * pages_for_tokens(num_tokens, codec)

    def stored_bytes(self, num_tokens: int, codec: str) -> int:
        """Bytes of one stored chunk: codes, steps, zeros, padding of partial pages, and the correction factors, which
        are counted whether they are measured or not."""
        factors = ALPHA_BYTES * self.num_tables if is_quantized(codec) else 0
        return 2 * page_bytes(self.head_dim) * self.chunk_pages(num_tokens, codec) + factors

    def bf16_bytes(self, num_tokens: int) -> int:
        """Bytes of the same tokens as dense BF16 keys and values, without any padding."""
        return 2 * 2 * num_tokens * self.num_tables * self.head_dim

    def bits_per_value(self, num_tokens: int, codec: str) -> float:
        """Stored bits per key or value element of a chunk, everything counted."""
        return 16 * self.stored_bytes(num_tokens, codec) / self.bf16_bytes(num_tokens)


@dataclass(frozen=True)
class Window:
    """Which committed chunks a stream keeps. Neither count includes the chunk being denoised.

    `positions` says where rotary embedding places the tokens: "absolute" counts from the video's start,
    "window" re-indexes the kept chunks from 0, so that no position exceeds those the model was trained on.
    """

    sink_chunks: int = 1
    recent_chunks: int = 4
    positions: str = "absolute"

    def __post_init__(self) -> None:
        if self.sink_chunks < 0:
            raise ConfigError(f"sink_chunks is {self.sink_chunks}; it must be 0 or more")
        if self.recent_chunks < 1:
            raise ConfigError(f"recent_chunks is {self.recent_chunks}; at least the newest chunk must stay visible: 1")
        if self.positions not in ("absolute", "window"):
            raise ConfigError(f"positions is {self.positions!r}; allowed are 'absolute' and 'window'")

    @property
    def max_chunks(self) -> int:
        """Most committed chunks visible at once (pins not counted)."""
        return self.sink_chunks + self.recent_chunks

    def live(self, num_committed: int) -> tuple[int, ...]:
        """Indices of the chunks kept after `num_committed` commits: sinks, then recent ones, ascending.

        sink 1, recent 2, 6 committed:   [0] 1  2  3 [4  5]
        """
        first_recent = max(self.sink_chunks, num_committed - self.recent_chunks)
        return (*range(min(self.sink_chunks, num_committed)), *range(first_recent, num_committed))

    def keeps(self, chunk_index: int, num_committed: int) -> bool:
        """Whether a committed chunk is among `live(num_committed)`."""
        return chunk_index < self.sink_chunks or chunk_index >= num_committed - self.recent_chunks


@dataclass(frozen=True)
class Commit:
    """One chunk that a stream is going to commit, if that is known in advance."""

    num_tokens: int
    drops: tuple[int, ...] = ()
    """Chunks that the stream still keeps and drops before this commit, because nobody will read them any more."""


@dataclass(frozen=True)
class RoleCodecs:
    """The codec of a chunk by its role. `newest`: the last committed chunk stays in it until the next is committed."""

    history: str = "int2"
    sink: str | None = None
    newest: str | None = None

    def __post_init__(self) -> None:
        for role in ("history", "sink", "newest"):
            codec = getattr(self, role)
            if codec is not None and codec not in BITS_PER_VALUE:
                raise ConfigError(f"the {role} codec is {codec!r}; allowed are {', '.join(BITS_PER_VALUE)}")

    def final(self, chunk_index: int, window: Window) -> str:
        """The codec in which a chunk ends up."""
        return self.sink or self.history if chunk_index < window.sink_chunks else self.history

    def at_commit(self, chunk_index: int, window: Window) -> str:
        """The codec in which a chunk is first written."""
        return self.newest or self.final(chunk_index, window)

    def recodes(self, chunk_index: int, window: Window) -> bool:
        """Whether a chunk changes its codec when the next one is committed (and it is still visible after that)."""
        stays = chunk_index < window.sink_chunks or window.recent_chunks > 1
        return stays and self.at_commit(chunk_index, window) != self.final(chunk_index, window)


def peak_pages(
    shape: KVShape, window: Window, codecs: RoleCodecs, chunk_tokens: int, max_commits: int | None = None
) -> int:
    """Most page ids that one branch of a stream ever holds: exact, found by walking through its commits.

    While chunk i is committed, everything visible before is still being read; added are the pages of chunk i and, if
    chunk i - 1 now leaves its `newest` codec, the pages of its final form. After sinks + recent + 2 commits the pattern
    repeats. `max_commits`: the stream's known number of commits, None when it is open-ended.
    """
    steady = window.max_chunks + 2
    pages = {codec: shape.chunk_pages(chunk_tokens, codec) for codec in BITS_PER_VALUE}
    sink_pages, history_pages = pages[codecs.sink or codecs.history], pages[codecs.history]
    peak = 0
    for i in range(steady if max_commits is None else min(max_commits, steady)):
        num_sinks = min(i, window.sink_chunks)
        num_recent = min(i - num_sinks, window.recent_chunks)
        held = num_sinks * sink_pages + num_recent * history_pages + pages[codecs.at_commit(i, window)]
        if i > 0:  # the last one may still be in its `newest` codec, and take its final form now
            held += pages[codecs.at_commit(i - 1, window)]
            held -= 0 if codecs.recodes(i - 1, window) else pages[codecs.final(i - 1, window)]
        peak = max(peak, held)
    return peak


def planned_peak_pages(shape: KVShape, window: Window, codecs: RoleCodecs, commits: Sequence[Commit]) -> int:
    """Most page ids that one branch of a stream ever holds while exactly these chunks are committed and dropped.

    The rule is that of `peak_pages`; chunks may differ in length and leave before the window would let them go.
    """
    held: dict[int, int] = {}
    peak = 0
    for i, commit in enumerate(commits):
        for index in commit.drops:
            held.pop(index, None)
        new_pages = shape.chunk_pages(commit.num_tokens, codecs.at_commit(i, window))
        final = {}
        if i - 1 in held and codecs.recodes(i - 1, window):
            final = {i - 1: shape.chunk_pages(commits[i - 1].num_tokens, codecs.final(i - 1, window))}
        peak = max(peak, sum(held.values()) + new_pages + sum(final.values()))
        held |= {**final, i: new_pages}
        held = {index: pages for index, pages in held.items() if window.keeps(index, i + 1)}
    return peak


def planned_peak_tokens(window: Window, commits: Sequence[Commit]) -> int:
    """Most tokens that one branch of a stream ever holds while exactly these chunks are committed and dropped."""
    held: dict[int, int] = {}
    peak = 0
    for i, commit in enumerate(commits):
        held = {index: tokens for index, tokens in held.items() if index not in commit.drops}
        held[i] = commit.num_tokens
        peak = max(peak, sum(held.values()))
        held = {index: tokens for index, tokens in held.items() if window.keeps(index, i + 1)}
    return peak


def stream_bytes(
    shape: KVShape,
    window: Window,
    codecs: RoleCodecs,
    chunk_tokens: int,
    num_branches: int = 1,
    max_commits: int | None = None,
) -> int:
    """Bytes of pages that `open` reserves for one stream."""
    return 2 * page_bytes(shape.head_dim) * num_branches * peak_pages(shape, window, codecs, chunk_tokens, max_commits)
