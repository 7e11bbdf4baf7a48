"""What a video model must offer so that the engine can run it: the `VideoModel` protocol.

A model never sees the cache. Its packed forward receives an `Attend` callable and calls it exactly once in every
self-attention layer, with queries and keys *before* rotary embedding; the callable rotates, reads the history, merges
and (in a commit pass) stores.

Axes: T packed tokens of all pieces, C latent channels, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from pagedvid.quant.rotary import RopeTables


@dataclass(frozen=True)
class ModelGeometry:
    """The integers of a model that memory depends on."""

    num_layers: int
    num_query_heads: int
    num_kv_heads: int
    head_dim: int
    tokens_per_frame: int
    frames_per_chunk: int
    branches: tuple[str, ...] = ("cond",)

    @property
    def chunk_tokens(self) -> int:
        """Tokens of one chunk."""
        return self.tokens_per_frame * self.frames_per_chunk


class Attend(Protocol):
    """One self-attention layer over history and current chunk: q [T, Hq, D], k and v [T, Hkv, D] -> [T, Hq, D]."""

    def __call__(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        """Attends in the given layer; call it exactly once per layer and forward."""
        ...


@dataclass(frozen=True)
class Piece:
    """One chunk of one branch of one stream inside a packed forward."""

    num_tokens: int
    noise_level: float
    """1.0 is pure noise, 0.0 is clean (a commit pass)."""
    branch: str
    condition: Any
    """What `encode_prompt` returned for the stream's prompt."""


class VideoModel(Protocol):
    """A chunk-wise autoregressive video diffusion model."""

    @property
    def name(self) -> str:
        """Its name in the registry."""
        ...

    @property
    def geometry(self) -> ModelGeometry:
        """Its integers."""
        ...

    @property
    def rope(self) -> RopeTables | None:
        """Rotary tables; None for a model without rotary embedding."""
        ...

    @property
    def frames_per_second(self) -> float:
        """Speed of its videos."""
        ...

    @property
    def positions(self) -> str:
        """Where rotary positions start, see `geometry.Window`: "absolute" or "window"."""
        ...

    @property
    def max_window_chunks(self) -> int:
        """Most chunks (sinks + recent + current) that the model was trained on."""
        ...

    def encode_prompt(self, prompt: str) -> Any:
        """Condition of a prompt. Raises `PromptError` when nothing in it is known; warns about single unknown words."""
        ...

    def noise_levels(self, num_denoise_steps: int) -> tuple[float, ...]:
        """num_denoise_steps + 1 falling levels, from 1.0 to 0.0."""
        ...

    def initial_noise(self, seed: int, chunk_index: int) -> Tensor:
        """Noise of one chunk, [chunk_tokens, C]; depends on seed and chunk only, not on device or batch."""
        ...

    def forward(self, latents_TC: Tensor, pieces: Sequence[Piece], attend: Attend) -> Tensor:
        """Prediction for every packed token, [T, C]. One call of `attend` per self-attention layer."""
        ...

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """One sampler step of one chunk: its latents at `next_noise_level` from the predictions of its branches."""
        ...

    def decode(self, latents_TC: Tensor) -> np.ndarray:
        """Frames of one clean chunk, uint8 [frames, height, width, 3]."""
        ...
