"""One video of a LightX2V model in pages, in place of its `RollingKVCachePool`. LightX2V itself is not imported here.

Written against lightx2v/common/kvcache/ of ModelTC/LightX2V, revision f8aee98. In each forward a layer calls, in this
order: `roll_window` (for a new chunk, once the window is full), `store_kv`, `set_ends`, `k_cache` and `v_cache`, and
its attention with what these returned. The host computes all places, from `get_global_end` and `get_local_end`.
Here `k_cache` returns a handle instead of tensors, and the attention is one call: `PagedPool.attend`.

LightX2V rewrites a chunk's keys and values in every forward. The runner sets `current_step` before each denoise step,
and not before the last forward of a chunk (its "rerun" with the clean latents): that one is the commit pass.
Axes: n tokens of a chunk, H heads, D head_dim.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from pagedvid.attention.step import Step
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.stream_sizes import peak_pages
from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError, ShapeError, StateError
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.grid_rotary import GridRotary


class RotaryCall(NamedTuple):
    """What a layer asked its rotary embedding for: its own tokens' places. Nothing is copied or read until needed."""

    freqs: Tensor
    """complex64 [positions, D/2], the pairs of time, row and column side by side."""
    grid_sizes: Tensor
    """int [1, 3]: frames, rows and columns of the chunk."""
    start_frame: int


@dataclass
class LastRotary:
    """The rotary call of the layer that runs: what is known of its tokens when it attends."""

    call: RotaryCall | None = None


class PagedKeys(NamedTuple):
    """Stands for the keys and the values that a layer sees."""

    counted: Tensor
    """[n, 0], of no bytes: LightX2V asks the first item of a tuple for the number of keys."""
    history: PagedPool
    layer: int


class _Abandoned(Exception):
    """Rolls back the step of a forward that did not come to its end."""


class PagedPool:
    """The self-attention history of one video. LightX2V makes it; its arguments up to `device` are LightX2V's."""

    sp_head_sharded = False

    def __init__(
        self,
        num_layers: int,
        cache_size: int,
        num_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        sink_chunks: int,
        codecs: StreamCodecs,
        correction: str,
        rotary: LastRotary,
    ) -> None:
        """`cache_size`: tokens of the window, sinks and current chunk included. `dtype` is not used: pages have codecs.
        Raises ConfigError."""
        self._spec = CacheSpec(num_layers, num_heads, head_dim, codecs=codecs, correction=correction)
        self._window_tokens, self._sink_chunks = cache_size, sink_chunks
        self._device, self._last_rotary = device, rotary
        self.cache: PagedKVCache | None = None
        """Made in the first forward, which says how long a chunk is; as large as one video's peak."""
        self._open = ExitStack()
        self.reset()

    # ------------------------------------------------------------------ called by LightX2V

    def reset(self) -> None:
        """Forgets the video: the next forward begins another one."""
        self._abandon()
        if self.cache is not None and self.cache.streams:
            self.cache.release(self._stream)
        self._ends = [(0, 0)] * self._spec.num_layers
        self._given: tuple[Tensor, Tensor] | None = None
        self._is_denoise_step = False
        self._num_steps = 0

    def _init_kv_buffer(self) -> None:
        """Does nothing: see `cache`."""

    @property
    def current_step(self) -> int:
        """Denoise step of the chunk."""
        return self._num_steps

    @current_step.setter
    def current_step(self, number: int) -> None:
        self._num_steps, self._is_denoise_step = number, True

    def get_global_end(self, layer_id: int) -> int:
        """Tokens of the video up to the end of the last chunk that the layer was given."""
        return self._ends[layer_id][0]

    def get_local_end(self, layer_id: int) -> int:
        """The same, of the tokens in the window."""
        return self._ends[layer_id][1]

    def set_ends(self, layer_id: int, global_end: int, local_end: int) -> None:
        """Sets both ends."""
        self._ends[layer_id] = (global_end, local_end)

    def roll_window(self, layer_id: int, sink_tokens: int, num_evicted: int) -> None:
        """Does nothing: the commit pass has slid the window. `attend` compares the result."""

    def store_kv(self, k: Tensor, v: Tensor, start_idx: int, end_idx: int, layer_id: int) -> None:
        """The layer's keys and values of the current chunk, [n, H, D], for the `attend` that follows."""
        self._given = (k, v)

    def k_cache(self, layer_id: int, attn_start: int | None = None, local_end: int | None = None) -> PagedKeys:
        """What the layer sees, for `attend`."""
        stop = self.get_local_end(layer_id) if local_end is None else local_end
        return PagedKeys(torch.empty(stop - (attn_start or 0), 0, dtype=torch.float32), self, layer_id)

    v_cache = k_cache

    # ------------------------------------------------------------------ called by our attention

    def attend(self, keys: PagedKeys, q: Tensor) -> Tensor:
        """Attention of q [n, H, D], before rotary embedding -> the same shape; the commit pass stores the chunk.

        Raises StateError for a forward that does not continue the video, ConfigError for another window than LightX2V
        has, and what `Step.attend` raises. After an error the video is as it was before the forward.
        """
        if self._given is None:
            raise StateError(f"layer {keys.layer} attends before it stored keys; each store_kv is for one attention")
        (k, v), self._given = self._given, None
        try:
            if keys.layer == 0:
                self._begin(len(keys.counted), len(q))
            out = self._step.attend(keys.layer, q, k, v, self._rope)
            if keys.layer == self._spec.num_layers - 1:
                self._open.close()  # ends the step; the chunk of a commit pass is published
        except BaseException:
            self._abandon()
            raise
        return out

    def _begin(self, num_visible: int, num_tokens: int) -> None:
        self._abandon()
        commit, self._is_denoise_step = not self._is_denoise_step, False
        if self.cache is None or not self.cache.streams:
            self._open_video(num_tokens)
        self._require_next(num_tokens)
        held = sum(chunk.num_tokens for chunk in self._stream.chunks())
        if held + num_tokens != num_visible:
            raise ConfigError(
                f"LightX2V lets this chunk see {num_visible} tokens, but {held} of the history are kept and "
                f"{num_tokens} are new: leave max_attention_size out of ar_config, so that all of the window is seen"
            )
        range_ = QueryRange(self._stream, num_tokens=num_tokens, commit=commit)
        self._step: Step = self._open.enter_context(self._cache().step([range_]))

    def _open_video(self, num_tokens: int) -> None:
        window = self._window(num_tokens)
        self._rope, self._tokens_per_frame = rotary_of(self._rotary(), self._spec.head_dim)
        if self.cache is None:
            pages = peak_pages(self._spec.shape, window, self._spec.codecs, num_tokens)
            self.cache = PagedKVCache(self._spec, pages * self._spec.shape.page_bytes, self._device)
        self._stream: Stream = self.cache.open(window, num_tokens)

    def _window(self, num_tokens: int) -> Window:
        chunks, rest = divmod(self._window_tokens, num_tokens)
        if rest or chunks < self._sink_chunks + 2:
            raise ConfigError(
                f"the window has {self._window_tokens} tokens in chunks of {num_tokens}, {self._sink_chunks} of them "
                "sinks; it must be whole chunks, at least one between the sinks and the current one: choose "
                "ar_config.local_attn_size as a multiple of num_frame_per_chunk"
            )
        return Window(self._sink_chunks, chunks - self._sink_chunks - 1)

    def _require_next(self, num_tokens: int) -> None:
        start, committed = self._ends[0][0] - num_tokens, self._stream.num_committed
        if start != committed * num_tokens:
            raise StateError(
                f"a chunk that begins at token {start} was given, but {committed} chunks of {num_tokens} are stored: "
                "every chunk ends with one forward for which the runner does not set current_step, and cannot run again"
            )
        if self._rotary().start_frame * self._tokens_per_frame != start:
            raise ConfigError(
                f"the chunk at token {start} is rotated as frame {self._rotary().start_frame} of "
                f"{self._tokens_per_frame} tokens; reference frames in front of the video are not supported"
            )

    def _rotary(self) -> RotaryCall:
        if self._last_rotary.call is None:
            raise ConfigError('this model was built without our rotary embedding: set "causal_rope_type": "pagedvid"')
        return self._last_rotary.call

    def _cache(self) -> PagedKVCache:
        assert self.cache is not None
        return self.cache

    def _abandon(self) -> None:
        with suppress(_Abandoned), self._open:
            raise _Abandoned


def rotary_of(call: RotaryCall, head_dim: int) -> tuple[GridRotary, int]:
    """The rotary embedding that a layer asked for, and the tokens of a frame.

    LightX2V has one table for all axes: row p is e^(i p f) of each pair's frequency f, so row 1 has the frequencies.
    Time takes what remains of the pairs when rows and columns have taken a third each, rounded down.
    """
    _, rows, columns = call.grid_sizes[0].tolist()
    third = head_dim // 2 // 3
    frequencies = call.freqs[1].angle().double()
    if len(frequencies) != head_dim // 2:
        raise ShapeError(f"the rotary table has {len(frequencies)} pairs of channels; heads have {head_dim // 2}")
    axes = frequencies.split([head_dim // 2 - 2 * third, third, third])
    positions = [torch.arange(size, dtype=torch.float64, device=frequencies.device) for size in (rows, columns)]
    return GridRotary(axes, positions, "interleaved"), rows * columns
