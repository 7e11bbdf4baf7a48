"""What Wan-like models share as `VideoModel`s: a transformer of diffusers, its latents as tokens, text, frames out.

Axes: T packed tokens of P ranges, each one chunk of F latent frames; C latent channels, R and S rows and columns of a
latent frame; K channels of a token.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import Attend, Decoder, PrefixFormat
from pagedvid.engine.schedule import Range
from pagedvid.errors import GivenFramesError
from pagedvid.integrations.diffusers import AttendingTransformer
from pagedvid.models.common.chunk_by_chunk import check_whole_chunks, chunk_noise
from pagedvid.models.common.latent_grid import LatentGrid
from pagedvid.models.common.prefix import INPUT, Prefix, read_prefix
from pagedvid.models.common.stateless_decoder import StatelessDecoder
from pagedvid.models.common.text_encoder import TextEncoder
from pagedvid.models.wan.base.spec import FRAMES_PER_LATENT, WanSettings, shape_of
from pagedvid.models.wan.base.text import PromptReader

LatentDecoder = Decoder
"""A decoder of latent frames: those of the video's next chunk, float32 [F, C, R, S] -> uint8 [N, height, width, 3]."""


@dataclass(frozen=True)
class Condition:
    """What steers one video."""

    text: Mapping[str, Tensor]
    """Rows for cross-attention by role, [n, width] on the CPU."""
    prefix: Prefix | None = None
    """The given frames that it goes on from."""
    _placed: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def num_prefix_chunks(self) -> int:
        """Chunks of the given frames."""
        return 0 if self.prefix is None else self.prefix.num_chunks

    def rows(self, role: str, like: Tensor) -> Tensor:
        """The rows of a role on the device and in the dtype of `like`. The first forward copies them there, so that
        waiting videos hold no memory on the device."""
        if role not in self._placed:
            self._placed[role] = self.text[role].to(like)
        return self._placed[role]


class WanModel(ABC):
    """A video model on a transformer of diffusers.

    The settings, not the configured window, decide how far a chunk looks back.
    """

    max_window_chunks = 2**31

    def __init__(
        self,
        transformer: Any,
        settings: WanSettings,
        text: TextEncoder | None = None,
        decoder: Callable[[], LatentDecoder] | None = None,
        branches: tuple[str, ...] = ("cond",),
        encode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """`transformer`: one of `integrations.diffusers.SUPPORTED`; its self-attention is replaced. `decoder`: called
        once per video; None: outputs are latents. `encode`: given frames uint8 [N, height, width, 3] -> their latents
        [F, C, R, S]; None: no video goes on from any. Raises ConfigError."""
        config = transformer.config
        shape = shape_of(config)
        self.settings = settings
        self.geometry = shape.geometry(settings, branches)
        self.grid = LatentGrid(config.in_channels, settings.latent_rows, settings.latent_columns, shape.patch)
        self.transformer = transformer.eval().requires_grad_(False)
        self.network = AttendingTransformer(transformer)
        self.rope = self.network.paged.rope(self.grid.token_rows, self.grid.token_columns)
        self._prompts = PromptReader(settings.name, text, settings.text_tokens, config.text_dim)
        self._new_decoder, self._encode = decoder, encode

    # ------------------------------------------------------------------ what a model gives

    @abstractmethod
    def predict(
        self, latents_PCFRS: Tensor, noise_levels_P: Sequence[float], text_PLN: Tensor, attend: Attend
    ) -> Tensor:
        """The network's output, [P, C, F, R, S]."""

    @abstractmethod
    def prompts(self, prompt: str) -> Mapping[str, str]:
        """The prompt of every role."""

    # ------------------------------------------------------------------ VideoModel

    @property
    def name(self) -> str:
        """Its name in the registry."""
        return self.settings.name

    @property
    def positions(self) -> str:
        """Where rotary positions start."""
        return self.settings.positions

    @property
    def frames_per_second(self) -> float:
        """Of decoded frames, or of latent ones without a decoder."""
        return self.settings.fps / (FRAMES_PER_LATENT if self._new_decoder is None else 1)

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The transformer's blocks, in the order in which they run."""
        return list(self.transformer.blocks)

    def prepare(self, prompt: str, inputs: Mapping[str, Any], num_frames: int) -> Condition:
        """Encodes the prompts, or takes the rows that the request brings (text.py), and the given frames
        (models/common/prefix.py).

        Raises ConfigError, PromptError.
        """
        prefix = None
        if self._encode is not None:
            prefix = read_prefix(inputs, self._prefix_format(max_chunks=1), self.encode, self.name)
            inputs = {name: value for name, value in inputs.items() if name != INPUT}
        return Condition(self._prompts.rows(self.prompts(prompt), inputs), prefix)

    def prefix_format(self, window: Window) -> PrefixFormat | None:
        """Frames of its size, as many chunks as its window keeps. Raises ConfigError without a VAE."""
        if self._encode is None:
            raise GivenFramesError(f"{self.name} has no VAE to encode given frames with; set model.vae to its folder")
        return self._prefix_format(self.settings.window(window).max_chunks)

    def _prefix_format(self, max_chunks: int) -> PrefixFormat:
        return PrefixFormat(self.settings.frames, self.geometry.frames_per_chunk, max_chunks)

    def forward(
        self, latents_TC: Tensor, ranges: Sequence[Range], conditions: Sequence[Condition], attend: Attend
    ) -> Tensor:
        """The transformer's prediction for every packed token, float32 [T, K]. Ranges are whole chunks, one batch row
        each; of wider latents only the first K channels are read. Raises ShapeError."""
        check_whole_chunks(self.name, self.geometry, latents_TC, ranges)
        chunks = latents_TC.split(self.geometry.chunk_tokens)
        latents = torch.stack([self.grid_of(chunk).transpose(0, 1) for chunk in chunks])
        packed = zip(ranges, conditions, strict=True)
        rows = [condition.rows(part.role, self._placement) for part, condition in packed]
        text = self._prompts.stacked(rows, self._placement)
        levels = [part.noise_level for part in ranges]
        out = self.predict(latents.to(self._placement.dtype), levels, text, attend)
        return torch.cat([self.grid.tokens(row.float()).flatten(0, 1) for row in out])

    def decoder(self, condition: Condition) -> Decoder:
        """A new decoder for one video; without a VAE its output is latents, float32 [F, C, R, S]."""
        if self._new_decoder is None:
            return StatelessDecoder(lambda latents_TC: self.grid_of(latents_TC).float().contiguous().cpu().numpy())
        return _TokenDecoder(self.grid_of, self._new_decoder(), condition.prefix)

    # ------------------------------------------------------------------ for models

    @property
    def _placement(self) -> Tensor:
        """A tensor whose device and dtype are those of the transformer's inputs."""
        weight: Tensor = self.transformer.patch_embedding.weight
        return weight

    def grid_of(self, latents_TC: Tensor) -> Tensor:
        """Tokens of whole frames, [T, K or more], as latent frames [F, C, R, S]."""
        tokens = latents_TC[:, : self.grid.token_channels]
        return self.grid.grid(tokens.unflatten(0, (-1, self.grid.tokens_per_frame))).transpose(0, 1)

    def encode(self, frames_NHWC: Tensor) -> Tensor:
        """Tokens of given frames, float32 [T, K]. Raises what the VAE raises."""
        assert self._encode is not None, "frames are read only where they can be encoded"
        latents_CFRS = self._encode(frames_NHWC).transpose(0, 1)
        return self.grid.tokens(latents_CFRS).flatten(0, 1).to(self._placement.device, torch.float32)

    def noise(self, seed: int, chunk_index: int, num_draws: int = 1) -> Tensor:
        """Standard normal numbers that depend on seed, chunk and draw only, float32 [chunk_tokens, num_draws K]."""
        shape = (self.geometry.chunk_tokens, self.grid.token_channels)
        draws = [chunk_noise(*shape, seed, chunk_index, draw) for draw in range(num_draws)]
        return torch.cat(draws, dim=1).to(self._placement.device)


@dataclass
class _TokenDecoder:
    """A decoder of latent frames as a decoder of tokens."""

    grid_of: Callable[[Tensor], Tensor]
    frames: LatentDecoder
    not_seen: Prefix | None
    """Given frames, which the decoder is shown first for what it keeps of them; they are not part of the output."""

    def __call__(self, latents_TC: Tensor, /) -> np.ndarray:
        if self.not_seen is not None:
            self.frames(self.grid_of(self.not_seen.latents_TC))
            self.not_seen = None
        return self.frames(self.grid_of(latents_TC).float())

    def state(self) -> dict[str, Tensor]:
        return self.frames.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.frames.restore(state)
        if state:
            self.not_seen = None
