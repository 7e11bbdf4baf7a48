"""Videos with full control over their history: a plain loop over the package's cache, used where the engine cannot look
inside: to watch queries, keys and values, and to put given chunks into the history ("teacher forcing"). For models with
the one branch "cond", such as the demo model.

Lists over chunks hold one tensor for all videos, [videos * chunk_tokens, ...], packed in the order of the prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from pagedvid.attention.step import Step
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.stream import Stream
from pagedvid.cache.window import Window
from pagedvid.engine.protocol import Attend, VideoModel
from pagedvid.engine.schedule import Range
from pagedvid.paged_kv_cache import PagedKVCache

Watch = Callable[[Step, int, Tensor, Tensor, Tensor], None]
"""Called before every attention of a forward with (step, layer, q, k, v)."""


@dataclass(frozen=True)
class Request:
    """One video."""

    prompt: str
    seed: int


@dataclass(frozen=True)
class Generated:
    """What a run made."""

    latents: list[Tensor]
    """Clean latents by chunk."""
    frames: list[np.ndarray]
    """Frames by chunk, uint8 [videos, F, H, W, 3]."""


@dataclass(frozen=True)
class ForcedRun:
    """The videos of some requests, all of them in every forward."""

    model: VideoModel
    cache: PagedKVCache
    window: Window
    requests: Sequence[Request]
    num_chunks: int
    num_denoise_steps: int

    def generate(
        self, history: Sequence[Tensor] | None = None, watch: Watch | None = None, first_chunk: int = 0
    ) -> Generated:
        """Every chunk from `first_chunk` on, denoised from its own noise; chunks before it are in no history.

        `history`: clean latents by chunk that are committed in the place of those generated; None: those generated.
        """
        streams = [self.cache.open(self.window, self.model.geometry.chunk_tokens) for _ in self.requests]
        conditions = [self.model.encode_prompt(request.prompt) for request in self.requests]
        decoders = [self.model.decoder(condition) for condition in conditions]
        made = Generated([], [])
        for chunk in range(first_chunk, self.num_chunks):
            latents = self._denoise(streams, conditions, chunk, watch)
            made.latents.append(latents)
            parts = zip(decoders, latents.chunk(len(streams)), strict=True)
            made.frames.append(np.stack([decode(part) for decode, part in parts]))
            if chunk < self.num_chunks - 1:
                stored = latents if history is None else history[chunk]
                self._forward(streams, conditions, stored, 0.0, watch)
        for stream in streams:
            self.cache.release(stream)
        return made

    def _denoise(self, streams: list[Stream], conditions: list[object], chunk: int, watch: Watch | None) -> Tensor:
        levels = self.model.noise_levels(self.num_denoise_steps)
        latents = torch.cat([self.model.initial_noise(request.seed, chunk) for request in self.requests])
        for level, next_level in pairwise(levels):
            prediction = self._forward(streams, conditions, latents, level, watch)
            latents = self.model.advance(latents, {"cond": prediction}, level, next_level)
        return latents

    def _forward(
        self, streams: list[Stream], conditions: list[object], latents: Tensor, level: float, watch: Watch | None
    ) -> Tensor:
        """One packed forward; at noise level 0 it is the commit pass."""
        ranges = [Range(range(self.model.geometry.frames_per_chunk), level)] * len(conditions)
        with self.cache.step([QueryRange(stream, commit=level == 0.0) for stream in streams]) as step:
            return self.model.forward(latents, ranges, conditions, self._attend(step, watch))

    def _attend(self, step: Step, watch: Watch | None) -> Attend:
        def attend(layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
            if watch is not None:
                watch(step, layer, q_THD, k_THD, v_THD)
            return step.attend(layer, q_THD, k_THD, v_THD, self.model.rope)

        return attend
