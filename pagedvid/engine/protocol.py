"""What a video model must offer so that the engine can run it: the `VideoModel` protocol, and the `ModelSpec`, which is
known before its weights are read.

A model says in which order its chunks are worked on (`schedule`, see engine/schedule.py) and computes packed forwards.
It never sees the cache. Its packed forward receives an `Attend` callable and calls it exactly once in every
self-attention layer, with queries and keys *before* rotary embedding; the callable rotates, reads the history, merges
and (in a commit pass) stores.

Axes: T packed tokens of all ranges, C latent channels, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsIndex, runtime_checkable

import numpy as np
from torch import Tensor, nn

from pagedvid.cache.window import Window
from pagedvid.engine.schedule import Range, Schedule
from pagedvid.rotary.tables import RopeTables


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
    """The cached histories that a stream keeps, one each."""

    @property
    def chunk_tokens(self) -> int:
        """Tokens of one chunk."""
        return self.tokens_per_frame * self.frames_per_chunk


class Decoder(Protocol):
    """Makes a video's output of its latents. Every video has its own, called with the video's frames in order, because
    a causal VAE carries features from chunk to chunk."""

    def __call__(self, latents_TC: Tensor, /) -> np.ndarray:
        """Clean latents of the video's next frames -> uint8 [frames, height, width, 3], or latents, float32 [frames, C,
        rows, columns]."""
        ...

    def state(self) -> dict[str, Tensor]:
        """What it keeps of the frames so far, by name, on the CPU; empty for a decoder that keeps nothing. Later calls
        leave these tensors as they are."""
        ...

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from the `state` of another decoder of the same model, and leaves its tensors as they are. Raises
        ConfigError for the state of another kind of decoder."""
        ...


class Attend(Protocol):
    """One self-attention layer over history and current chunk: q [T, Hq, D], k and v [T, Hkv, D] -> [T, Hq, D]."""

    def __call__(self, layer: SupportsIndex, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, /, **how: Any) -> Tensor:
        """Attends in the given layer; call it exactly once per layer and forward. `how` goes to `Step.attend`."""
        ...


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
    def network(self) -> nn.Module:
        """What computes its packed forwards. Its arguments are tensors and plain values, or lists, tuples and
        dataclasses of such, and `attend`, the last one."""
        ...

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The blocks of its network, in the order in which they run: its layers of self-attention, one in each."""
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
        """Where rotary positions start, see `Window`: "absolute", "window" or "given"."""
        ...

    @property
    def max_window_chunks(self) -> int:
        """Most chunks (sinks + recent + current) that the model was trained on."""
        ...

    def prepare(self, prompt: str, inputs: Mapping[str, Any], num_frames: int) -> Any:
        """Everything that steers one video, in the model's own form: text states, given frames, cameras.

        `inputs`: what the request brings in addition to its prompt. Raises `PromptError` when nothing in the prompt is
        known (warns about single unknown words), `ConfigError` for inputs that the model cannot use.
        """
        ...

    def prefix_format(self, window: Window) -> PrefixFormat | None:
        """The frames that a video can go on from, given the configured window; None: it goes on from none. Raises
        ConfigError where a part that it needs for them is missing.

        A request brings them as its input "prefix", a table whose "frames" are uint8 [N, height, width, 3].
        """
        ...

    def schedule(self, condition: Any, num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
        """The rounds that generate at least `num_frames` frames. Raises `ConfigError` for settings it cannot run.

        `num_denoise_steps`: of each chunk; None: the model's own number. `window` is the configured one; a model whose
        look-back is fixed keeps to its own.
        """
        ...

    def initial_latents(self, condition: Any, seed: int, chunk_index: int) -> Tensor:
        """What a chunk starts from, [chunk_tokens, C]: noise, and what was given. Independent of device and batch."""
        ...

    def forward(self, latents_TC: Tensor, ranges: Sequence[Range], conditions: Sequence[Any], attend: Attend) -> Tensor:
        """Prediction for every packed token, [T, C]. One call of `attend` per self-attention layer.

        `ranges`: what is packed, of one or many videos; each has `tokens_per_frame` tokens per frame. `conditions`: for
        each range, what `prepare` returned for its video.
        """
        ...

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """One move of the sampler: a chunk's latents [chunk_tokens, C] at `next_noise_level`, from those at
        `noise_level` and their predictions by role, which have the same shape."""
        ...

    def decoder(self, condition: Any) -> Decoder:
        """A new decoder for one video, at its first frame."""
        ...


@runtime_checkable
class Steerable(Protocol):
    """In addition to `VideoModel`, for a model whose next prompt continues from where the one before led, as in a walk:
    the frames so far depend on all earlier prompts."""

    def continued(self, before: Any, num_frames: int, after: Any) -> Any:
        """The condition `before`, and from latent frame `num_frames` on, at least 1, `after`.

        The rounds of the chunks before that frame must be those of `before`. Raises PromptError for an `after` that can
        only be at the beginning of a video.
        """
        ...


@dataclass(frozen=True)
class FrameFormat:
    """What a model's output frames are like."""

    height: int
    """Pixels, as all sizes here."""
    width: int
    frames_per_second: float
    frames_per_latent: int = 1
    """Output frames that a latent frame gives; the first one of a video gives one, unless given frames precede it."""


@dataclass(frozen=True)
class PrefixFormat:
    """The given frames that a video of a model goes on from: whole chunks, as its history has them."""

    frames: FrameFormat
    frames_per_chunk: int
    """Latent frames."""
    max_chunks: int
    """As many as its window keeps; earlier ones would not be seen."""

    def num_frames(self, num_chunks: int) -> int:
        """Frames of so many chunks, at least 1."""
        return 1 + (num_chunks * self.frames_per_chunk - 1) * self.frames.frames_per_latent

    def num_chunks(self, num_frames: int) -> int:
        """Whole chunks in so many frames."""
        num_latents = 1 + (num_frames - 1) // self.frames.frames_per_latent
        return max(0, num_latents) // self.frames_per_chunk


@dataclass(frozen=True)
class ModelSpec:
    """What memory, order of work and outputs depend on, and how to load the model. Every family of models gives one for
    a configuration."""

    geometry: ModelGeometry
    schedule: Callable[[int, int | None, Window], Schedule]
    """(latent frames of a video, denoise steps of a chunk or None for the model's own number, configured window) ->
    how that video would be worked on. Raises ConfigError."""
    load: Callable[[Sequence[str]], VideoModel]
    """The model ready to run. The given prompts, known beforehand, are encoded first, so that the text encoder is gone
    when the network is loaded. Raises ConfigError."""
    writes_latents: bool
    """Whether latents come out rather than frames."""
    pixel_scale: int = 1
    """Enlargement of its frames in files unless settings say otherwise."""
    frames: FrameFormat | None = None
    """None where latents come out."""
    takes_frames: bool = False
    """Whether its videos can go on from given frames; see `VideoModel.prefix_format`."""
    actions: tuple[str, ...] = ()
    """Words that steer a video of a steerable model while it is made: the prompt "left 12" repeats one for 12 frames.
    Words of direction are made of up, down, left and right, one or two of them, such as "up-left"."""
    example_prompt: str = ""
    """One that it understands, for a person who has never written one; empty: any English will do."""
    window: Window = field(default_factory=Window)
    """What it keeps unless settings say otherwise; where positions start, the loaded model says."""
