"""The hook that makes every forward of a diffusers transformer a step over a paged cache; the only file that derives
from diffusers' classes. diffusers_cache.py registers it.

One hook, on the transformer, is enough: `install` gives its layers the processors that call the step's `attend`.
diffusers keeps a state for each cache context, of whatever name; here that is the context's videos.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

from diffusers.hooks.hooks import BaseState, ModelHook, StateManager

from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream import Stream
from pagedvid.cache.window import Window
from pagedvid.errors import ShapeError, StateError
from pagedvid.integrations.diffusers import PagedSelfAttention, install
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.grid_rotary import GridRotary


class PagedCache(ModelHook):  # type: ignore[misc]  # diffusers is used through Any
    """The paged cache of one transformer. `enable_paged_cache` returns it."""

    _is_stateful = True
    """Lets diffusers name the cache context of a call, and call `reset_state` when a pipeline has ended."""

    def __init__(self, cache: PagedKVCache, window: Window, frames_per_chunk: int) -> None:
        """The arguments are those of every video."""
        super().__init__()
        self.cache = cache
        self._window, self._frames_per_chunk = window, frames_per_chunk
        self._commit_passes = 0

    @contextmanager
    def commit_pass(self) -> Iterator[None]:
        """Makes every forward inside the block a commit pass, of the context that it runs in. A context without commit
        passes has no history."""
        self._commit_passes += 1
        try:
            yield
        finally:
            self._commit_passes -= 1

    def reset(self) -> None:
        """Releases the videos of all contexts: the next forward begins new ones. Call it outside of contexts."""
        self._contexts.reset()

    # ------------------------------------------------------------------ called by diffusers

    def initialize_hook(self, module: Any) -> Any:
        """Takes over the self-attention of the transformer."""
        self._attention = install(module)
        self._contexts = StateManager(
            ContextVideos, (self.cache, self._attention, self._window, self._frames_per_chunk)
        )
        return module

    def deinitalize_hook(self, module: Any) -> Any:
        """Gives it back; the name is spelt as in diffusers."""
        self.reset()
        self._attention.remove()
        return module

    def reset_state(self, module: Any) -> Any:
        """As `reset`."""
        self.reset()
        return module

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        """The transformer's forward as a step. Raises StateError in training mode and outside of a cache context,
        ShapeError for latents that do not continue the context's videos."""
        if module.training:
            raise StateError(
                "this transformer is in training mode, but no gradient passes through pages: call eval(), or "
                "disable_paged_cache to train it"
            )
        forward = self.fn_ref.original_forward
        latents_BCFRS = inspect.signature(forward).bind(*args, **kwargs).arguments["hidden_states"]
        shape = TokenShape.of(latents_BCFRS.shape, module.config.patch_size)
        with self._videos().attending(shape, commit=self._commit_passes > 0):
            return forward(*args, **kwargs)

    def _videos(self) -> ContextVideos:
        try:
            return self._contexts.get_state()
        except ValueError as error:
            raise StateError(
                "a transformer with a paged cache was called outside of a cache context, which says whose history it "
                'sees: wrap the call in `with transformer.cache_context("cond"):`'
            ) from error


class TokenShape(NamedTuple):
    """The tokens of one forward."""

    videos: int
    frames: int
    rows: int
    columns: int

    @classmethod
    def of(cls, latents_BCFRS: tuple[int, ...], patch: tuple[int, int, int]) -> TokenShape:
        """Of latents of this shape, in patches of so many frames, rows and columns."""
        videos, _, *sizes = latents_BCFRS
        return cls(videos, *(size // step for size, step in zip(sizes, patch, strict=True)))


class ContextVideos(BaseState):  # type: ignore[misc]  # diffusers is used through Any
    """The videos of one cache context, one a batch row, from their first forward until `reset`."""

    def __init__(
        self, cache: PagedKVCache, attention: PagedSelfAttention, window: Window, frames_per_chunk: int
    ) -> None:
        self._cache, self._attention = cache, attention
        self._window, self._frames_per_chunk = window, frames_per_chunk
        self._streams: list[Stream] = []
        self._rope: GridRotary | None = None
        self._frame = (0, 0)

    @contextmanager
    def attending(self, shape: TokenShape, *, commit: bool) -> Iterator[None]:
        """One forward, whose layers all attend inside the block. Raises CapacityError and ShapeError."""
        if shape.frames > self._frames_per_chunk:
            raise ShapeError(
                f"this forward has {shape.frames} latent frames; the paged cache was enabled with "
                f"frames_per_chunk={self._frames_per_chunk}: denoise one chunk at a time, or enable it with more"
            )
        if not self._streams:
            self._open(shape)
        elif (len(self._streams), *self._frame) != (shape.videos, shape.rows, shape.columns):
            rows, columns = self._frame
            raise ShapeError(
                f"this forward has {shape.videos} videos of {shape.rows} x {shape.columns} tokens a frame, but this "
                f"cache context has {len(self._streams)} of {rows} x {columns}; call reset() before other videos"
            )
        num_tokens = shape.frames * shape.rows * shape.columns
        ranges = [QueryRange(stream, num_tokens=num_tokens, commit=commit) for stream in self._streams]
        with self._cache.step(ranges) as step, self._attention.attending(partial(step.attend, rope=self._rope)):
            yield

    def reset(self) -> None:
        """Releases the videos."""
        while self._streams:
            self._cache.release(self._streams.pop())

    def _open(self, shape: TokenShape) -> None:
        self._frame = (shape.rows, shape.columns)
        self._rope = self._attention.rope(*self._frame)
        try:
            for _ in range(shape.videos):
                self._streams.append(
                    self._cache.open(self._window, self._frames_per_chunk * shape.rows * shape.columns)
                )
        except BaseException:
            self.reset()
            raise
