"""The videos of one causal KV cache of SGLang in pages, in place of a `CausalSelfAttentionKVCache` per layer.

Written against the contract of SGLang 0.5.23, multimodal_gen/runtime/layers/kvcache/causal_attention_cache.py: each
layer calls `update_and_get_attention_kv(key=, value=, current_chunk_start=)`, which writes the chunk, rolls the window
if its start is new, and returns dense views of [sinks | newest tokens | chunk]. Here a layer calls `PagedLayer.attend`
with its queries, and a whole forward is one step. SGLang itself is not imported here.
Axes: B videos in lockstep, L tokens of a chunk, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

from pagedvid.attention.step import Step
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_sizes import peak_pages
from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError, ShapeError, StateError
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.grid_rotary import GridRotary


class ChunkGrid(NamedTuple):
    """The tokens of one forward."""

    videos: int
    frames: int
    rows: int
    columns: int


def window_of(cache_tokens: int, sink_tokens: int, chunk_tokens: int) -> Window:
    """SGLang's window in chunks, without the current one. Raises ConfigError if it is not made of whole chunks."""
    chunks, rest = divmod(cache_tokens, chunk_tokens)
    sink_chunks, sink_rest = divmod(sink_tokens, chunk_tokens)
    if rest or sink_rest or chunks < sink_chunks + 2:
        raise ConfigError(
            f"the window has {cache_tokens} tokens, {sink_tokens} of them sinks, and a chunk {chunk_tokens}; both must "
            "be whole chunks, at least one between the sinks and the current one: choose the window's frames and "
            "sink_size as multiples of num_frames_per_block"
        )
    return Window(sink_chunks, chunks - sink_chunks - 1)


class PagedVideos:
    """One stream for each video of the batch, in a pool as large as their peak."""

    def __init__(self, spec: CacheSpec, window: Window, chunk_tokens: int, num_videos: int, device: Any) -> None:
        """`chunk_tokens`: tokens of every chunk. `device`: of the pages."""
        pages = num_videos * peak_pages(spec.shape, window, spec.codecs, chunk_tokens)
        self.cache = PagedKVCache(spec, pages * spec.shape.page_bytes, device)
        self._window, self._chunk_tokens, self._num_videos = window, chunk_tokens, num_videos
        self._streams: list[Stream] = []
        self._rope: GridRotary | None = None
        self._grid: ChunkGrid | None = None
        self._step: Step | None = None
        self.reset()

    @property
    def num_committed(self) -> int:
        """Chunks stored so far, including those that have left the window."""
        return self._streams[0].num_committed

    def reset(self) -> None:
        """Releases all videos; the next forward begins new ones."""
        self._rope = None
        while self._streams:
            self.cache.release(self._streams.pop())
        self._streams = [self.cache.open(self._window, self._chunk_tokens) for _ in range(self._num_videos)]

    @contextmanager
    def forward(self, grid: ChunkGrid, first_token: int, start_frame: int, *, commit: bool) -> Iterator[None]:
        """One forward, whose layers all attend inside the block. `first_token`, `start_frame`: of the chunk, in the
        video and in its rotary embedding. Raises ShapeError, StateError for a chunk that is not next."""
        tokens_per_frame = grid.rows * grid.columns
        if (grid.videos, grid.frames * tokens_per_frame) != (self._num_videos, self._chunk_tokens):
            raise ShapeError(
                f"this forward has {grid.videos} videos of {grid.frames * tokens_per_frame} tokens; the cache is for "
                f"{self._num_videos} with chunks of {self._chunk_tokens}, all of one length"
            )
        if first_token != self.num_committed * self._chunk_tokens:
            raise StateError(
                f"a chunk that begins at token {first_token} was given, but {self.num_committed} chunks of "
                f"{self._chunk_tokens} are stored: each chunk ends with one forward of its clean latents, which "
                "updates the cache"
            )
        if start_frame * tokens_per_frame != first_token:
            raise ConfigError(
                f"the chunk at token {first_token} is rotated as frame {start_frame} of {tokens_per_frame} tokens; an "
                "image in front of the video, whose positions are given twice, is not supported"
            )
        if self._rope is None:
            self._rope, self._grid = lingbot_rotary(self.cache.spec.head_dim, grid), grid
        if grid != self._grid:
            raise ShapeError(
                f"this forward is of {grid}, but these videos began with {self._grid}; reset the cache first"
            )
        ranges = [QueryRange(stream, commit=commit) for stream in self._streams]
        with self.cache.step(ranges) as self._step:
            try:
                yield
            finally:
                self._step = None

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, host_tables: tuple[Tensor, Tensor]) -> Tensor:
        """Attention of q, k, v [B, L, H, D] before rotary embedding -> [B, L, H, D] in the dtype of v.

        `host_tables`: SGLang's cos and sin of the chunk, [L, D/2]. Raises StateError outside a forward, ConfigError
        if the first layer's tables are not those of `lingbot_rotary`.
        """
        if self._step is None or self._rope is None:
            raise StateError("a layer can attend only inside a forward of its transformer, which opens the step")
        if layer == 0 and self.num_committed <= 1:  # two chunks tell whether origin and frequencies are the same
            require_same_tables(self._rope, self.num_committed * self._chunk_tokens, host_tables)
        q_THD, k_THD, v_THD = (x.flatten(0, 1).to(v.dtype) for x in (q, k, v))
        return self._step.attend(layer, q_THD, k_THD, v_THD, self._rope).unflatten(0, (len(q), -1))


def lingbot_rotary(head_dim: int, grid: ChunkGrid) -> GridRotary:
    """The rotary embedding of SGLang's LingBot-World: a third of the channels for rows and for columns, rounded
    down to even numbers, the others for time."""
    third = 2 * (head_dim // 6)
    return GridRotary.from_theta((head_dim - 2 * third, third, third), grid.rows, grid.columns, "interleaved")


def require_same_tables(rope: GridRotary, first_token: int, host_tables: tuple[Tensor, Tensor]) -> None:
    """Raises ConfigError if the host rotates a chunk by other angles."""
    ours = rope.tables(first_token, len(host_tables[0]))
    for mine, theirs in zip(ours, host_tables, strict=True):
        if mine.shape != theirs.shape or not torch.allclose(mine, theirs.cpu().float(), rtol=0, atol=1e-4):
            raise ConfigError(
                f"this model rotates the chunk at token {first_token} by other angles than SGLang's LingBot-World; "
                "pages are read with the angles of that"
            )


@dataclass(frozen=True)
class PagedLayer:
    """One layer's part of `PagedVideos`, with what SGLang's stage reads of a cache."""

    videos: PagedVideos
    layer: int
    cache_size: int
    sink_tokens: int
    num_cache_heads: int
    global_sink_tokens: int = 0

    def reset_indices(self) -> None:
        """Begins new videos."""
        self.videos.reset()

    def attend(self, q: Tensor, k: Tensor, v: Tensor, host_tables: tuple[Tensor, Tensor]) -> Tensor:
        """As `PagedVideos.attend`."""
        return self.videos.attend(self.layer, q, k, v, host_tables)

    def update_and_get_attention_kv(self, *_: Any, **__: Any) -> NoReturn:
        """Raises ConfigError: only attention that was replaced reads pages."""
        raise ConfigError(
            "this self-attention asks for dense keys, and pages have none: the hook around LingBot-World's was not "
            "applied; SGLang's log says why"
        )

    can_direct_current_attention = pin_current_chunk = update_and_get_attention_kv
