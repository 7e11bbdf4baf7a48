"""One rollout of a flashdreams Wan network in pages, in place of its `BlockKVCache` per layer.

Written against the contract of flashdreams 0.1, `flashdreams.core.attention.BlockKVCache`:

    "Per-step usage: 1. before_update(chunk_idx) - prepare (roll local window if steady-state). 2. update(k, v) - write
    the new chunk's keys and values into the cache. 3. cached_k() / cached_v() - get cached keys/values for attention.
    4. after_update(chunk_idx) - update internal bookkeeping."

Here 2 and 3 are one call, `PagedHistory.attend`. It reads pages; only the commit pass writes them.
Axes: B videos in lockstep, L tokens of a chunk, n heads, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from pagedvid.attention.step import Step
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream import Stream
from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError, StateError
from pagedvid.paged_kv_cache import PagedKVCache


@dataclass
class PagedLayer:
    """Takes the place of a self-attention's `BlockKVCache`; the layers of a network share one history."""

    num_videos: int
    chunk_size: int
    window_size: int
    sink_size: int
    positions: str
    """As in `Window`: "absolute", or "window" if the model rotates keys by their place in the cache."""
    history: PagedHistory = field(init=False)

    def window(self) -> Window:
        """The same window in chunks, without the current one. Raises ConfigError if it is not made of whole chunks.

        If only the sinks and the current chunk are seen (window_size is one chunk), `PagedHistory` keeps one recent
        chunk until the commit pass has ended.
        """
        sink_chunks, rest = divmod(self.sink_size, self.chunk_size)
        if rest or self.window_size % self.chunk_size:
            raise ConfigError(
                f"sink_size {self.sink_size} and window_size {self.window_size} must be whole chunks of "
                f"{self.chunk_size} tokens, which are stored and dropped as a whole; choose sink_size_t and "
                "window_size_t as multiples of len_t"
            )
        return Window(sink_chunks, max(1, self.window_size // self.chunk_size - 1), self.positions)

    def before_update(self, chunk_idx: int) -> None:
        """The next forwards are of this chunk. Raises StateError unless it follows the last committed one."""
        self.history.begin(chunk_idx)

    def after_update(self, chunk_idx: int) -> None:
        """Does nothing: the commit pass has already published the chunk."""

    def reset(self) -> None:
        """The contract: "Reset the cache to its initial empty state"."""
        self.history.reset()


class PagedHistory:
    """The streams of one rollout, one per video of its batch, and the step of the forward that is running."""

    def __init__(self, cache: PagedKVCache, layer: PagedLayer) -> None:
        """Opens the streams. Raises ConfigError, or CapacityError with none left open."""
        window = layer.window()
        self.cache = cache
        self.streams: list[Stream] = []
        self.rope: ChunkRope | None = None
        """Set by `PagedRollouts.use_rope` before the first forward."""
        self._drops_newest = layer.window_size == layer.chunk_size
        self._begun = -1
        self._step: Step | None = None
        try:
            for _ in range(layer.num_videos):
                self.streams.append(cache.open(window, layer.chunk_size))
        except BaseException:
            release(cache, self.streams)
            raise

    @property
    def num_committed(self) -> int:
        """Chunks stored so far, including those that have left the window."""
        return self.streams[0].num_committed

    def begin(self, chunk_index: int) -> None:
        """The next forwards are of this chunk. Raises StateError unless it follows the last committed one."""
        if chunk_index != self.num_committed:
            raise StateError(
                f"chunk {chunk_index} was begun, but chunk {self.num_committed} is next: each chunk ends with one "
                "forward inside `finalize_kv_cache` (or `PagedRollouts.commit_pass`) and cannot run again afterwards"
            )
        self._begun = chunk_index

    @contextmanager
    def step(self, *, commit: bool) -> Iterator[None]:
        """One forward of the network, whose layers all attend inside the block."""
        with self.cache.step([QueryRange(stream, commit=commit) for stream in self.streams]) as self._step:
            try:
                yield
            finally:
                self._step = None
        newest = self.num_committed - 1
        if commit and self._drops_newest and newest >= self.streams[0].window.sink_chunks:
            for stream in self.streams:
                self.cache.drop(stream, (newest,))

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Self-attention of q, k, v [B * L, n, d] before rotary embedding; a commit pass stores k and v.

        Raises StateError outside a forward, without a rotary embedding, and for a chunk that was not begun.
        """
        if self._step is None or self.rope is None:
            raise StateError(
                "a layer can attend only inside a forward of its network, in a rollout whose rotary embedding is "
                "known: open it with the transformer's initialize_autoregressive_cache, or call PagedRollouts.use_rope"
            )
        if self._begun != self.num_committed:
            raise StateError(
                f"chunk {self.num_committed} was not begun: call before_update({self.num_committed}) first "
                f"(chunk {self._begun} was the last one; a chunk has one commit pass)"
            )
        return self._step.attend(layer, q, k, v, self.rope)

    def reset(self) -> None:
        """Releases all chunks and opens the streams again."""
        if self.num_committed:
            for number, stream in enumerate(self.streams):
                self.cache.release(stream)
                self.streams[number] = self.cache.open(stream.window, stream.chunk_tokens)
        self._begun = -1


class ChunkRope:
    """`RopeTables` of one of flashdreams' rotary embeddings, for whole chunks. Its own angles are read, not computed.

    `RotaryPositionEmbedding3D.shift_t(chunk_index)` gives the angles of that chunk, [L, 1, 1, d], each twice
    ("interleaved"). `KVCacheRelativeRotaryPositionEmbedding3D.shift_t` gives those of all slots of its cache, which
    hold one chunk after another.
    """

    layout = "interleaved"

    def __init__(self, embedding: Any, positions: str, chunk_size: int) -> None:
        """`positions`: as in `PagedLayer`. `chunk_size`: in tokens."""
        self._embedding = embedding
        self._is_relative = positions == "window"
        self._chunk_size = chunk_size

    def tables(self, first_token: int, num_tokens: int) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [L, d/2], of the chunk that begins with `first_token`."""
        index = first_token // self._chunk_size
        freqs: Tensor = self._embedding.shift_t(index)
        angles = self._in_slot(freqs, index) if self._is_relative else freqs
        angles = angles[:, 0, 0, ::2].float()
        return angles.cos(), angles.sin()

    def _in_slot(self, freqs: Tensor, slot: int) -> Tensor:
        slots = freqs.split(self._chunk_size)
        if slot < len(slots):
            return slots[slot]
        # The correction is fitted to queries one chunk ahead of the last slot: extrapolated from the last two.
        return 2 * slots[-1] - slots[-2] if len(slots) > 1 else slots[-1]


def release(cache: PagedKVCache, streams: Sequence[Stream]) -> None:
    """Releases the streams that are still open."""
    for stream in streams:
        if not stream.is_released:
            cache.release(stream)
