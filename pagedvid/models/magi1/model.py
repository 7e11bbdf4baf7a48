"""MAGI-1 as a `VideoModel`: captions in, latent frames out, several chunks in flight.

Frames come out as latents (the VAE is not part of pagedvid): float32 [frames, C, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import Attend, Decoder, ModelGeometry, Piece
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError, PromptError, ShapeError
from pagedvid.models.common.checkpoint import load_checkpoint
from pagedvid.models.common.text_encoder import TextEncoder
from pagedvid.models.magi1.conditioning import MagiCondition, read_captions, read_prefix
from pagedvid.models.magi1.config import PATCH, MagiConfig
from pagedvid.models.magi1.guidance import velocity
from pagedvid.models.magi1.latents import frames_of, tokens_of
from pagedvid.models.magi1.network import MagiNetwork, RangeInputs, channel_order, magi_rotary
from pagedvid.models.magi1.schedule import magi_schedule

OWN_PROMPT = {"cond", "alone"}
"""Branches whose ranges read their chunk's caption; the others read the null text."""
CONDITIONAL = {"cond", "alone", "clean"}
"""Branches of a conditional forward."""
INPUTS = ("embeddings", "prefix")


class MagiModel:
    """See `VideoModel`."""

    positions = "absolute"
    max_window_chunks = 2**31
    """The schedule decides what is kept, not the configured window."""

    def __init__(self, config: MagiConfig, network: MagiNetwork, text_encoder: TextEncoder | None = None) -> None:
        self.config = config
        self._text_encoder = text_encoder
        self.name = config.name
        self.network = network.eval().requires_grad_(False)
        self.geometry = geometry_of(config)
        self.default_denoise_steps = config.sampling.num_steps
        self.frames_per_second = config.frames.fps / config.frames.temporal_downsample_factor
        self.rope = magi_rotary(network.rope.bands, config.frames.rows, config.frames.columns)
        self._null_caption = network.y_embedder.null_tokens()
        self._text_condition = {has_prompt: network.y_embedder.condition(has_prompt) for has_prompt in (True, False)}

    @staticmethod
    def load(
        config: MagiConfig,
        weights: Path,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        text_encoder: TextEncoder | None = None,
        prefer_ema: bool = True,
    ) -> MagiModel:
        """Published weights, shard by shard. Raises ConfigError when they do not fit the configuration."""
        with torch.device("meta"):
            network = MagiNetwork(config.network, dtype)
        order = channel_order(config.network.kv_channels)
        load_checkpoint(
            network,
            weights,
            device,
            convert=lambda name, tensor: in_order(name, tensor, order),
            prefer_ema=prefer_ema,
        )
        return MagiModel(config, network, text_encoder)

    def prepare(self, prompt: str, inputs: Mapping[str, Any], num_frames: int) -> MagiCondition:
        """Captions from `inputs["embeddings"]`, or from the prompt if there is a text encoder; given frames from
        `inputs["prefix"]`. For both files see conditioning.py."""
        unknown = sorted(set(inputs) - set(INPUTS))
        if unknown:
            raise ConfigError(f"{self.name} takes the inputs {', '.join(INPUTS)}, not {', '.join(unknown)}")
        device, network = self._null_caption.device, self.config.network
        if "embeddings" in inputs:
            rows = read_captions(inputs["embeddings"], network)
        elif self._text_encoder is not None:
            rows = read_captions(self._text_encoder.encode(prompt, network.caption_max_length), network)
        else:
            raise PromptError(
                f"{self.name} has no embeddings for the prompt {prompt!r}: give the request a caption file (its input "
                '"embeddings"), or set model.text_encoder'
            )
        captions = tuple(self.network.y_embedder.tokens(caption.to(device)) for caption in rows)
        if "prefix" not in inputs:
            return MagiCondition(captions)
        prefix = read_prefix(inputs["prefix"], self.config.network, self.config.frames)
        return MagiCondition(captions, tokens_of(prefix).to(device))

    def schedule(self, condition: MagiCondition, num_frames: int, num_denoise_steps: int, window: Window) -> Schedule:
        """Chunks in flight; `window` is not asked, the look-back is the model's own."""
        frames = self.config.frames
        given = 0 if condition.prefix_TC is None else len(condition.prefix_TC) // frames.tokens_per_frame
        return magi_schedule(self.config.sampling, frames.chunk_width, num_denoise_steps, num_frames, given)

    def initial_latents(self, condition: MagiCondition, seed: int, chunk_index: int) -> Tensor:
        """Noise of one chunk, [chunk_tokens, 4 C], drawn on the CPU, so it is the same everywhere."""
        state = int(np.random.SeedSequence([seed, chunk_index]).generate_state(1, np.uint64)[0])
        generator = torch.Generator().manual_seed(state)
        channels = PATCH * PATCH * self.config.network.latent_channels
        noise = torch.randn(self.geometry.chunk_tokens, channels, generator=generator, dtype=torch.float32)
        return noise.to(self._null_caption.device)

    def forward(self, latents_TC: Tensor, pieces: Sequence[Piece], attend: Attend) -> Tensor:
        """Velocities [T, 4 C] of the packed ranges, each of them one chunk. Raises ShapeError."""
        sizes, size = [piece.num_tokens for piece in pieces], self.geometry.chunk_tokens
        if any(num_tokens != size for num_tokens in sizes) or len(latents_TC) != size * len(pieces):
            raise ShapeError(
                f"pieces of {sizes} tokens for {len(latents_TC)} packed tokens; every piece of {self.name} is one "
                f"chunk of {size}"
            )
        given = torch.cat(
            [self._with_prefix(x, piece) for x, piece in zip(latents_TC.split(sizes), pieces, strict=True)]
        )
        captions = [self._caption(piece) for piece in pieces]
        return self.network(given, RangeInputs(sizes, self._condition(pieces), captions), attend)

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """One Euler step along the guided velocity; levels are times, from 0 (noise) to 1 (clean)."""
        return latents_TC + (next_noise_level - noise_level) * velocity(predictions, noise_level, self.config.sampling)

    def decoder(self, condition: MagiCondition) -> Decoder:
        """`decode`: latents go out as they are."""
        return self.decode

    def decode(self, latents_TC: Tensor) -> np.ndarray:
        """Latent frames, float32 [frames, C, H, W]."""
        return frames_of(latents_TC.float().cpu(), self.config.frames).transpose(0, 1).contiguous().numpy()

    def _with_prefix(self, latents_TC: Tensor, piece: Piece) -> Tensor:
        """The range's latents with the given frames in their places."""
        prefix, size = piece.condition.prefix_TC, self.config.frames.tokens_per_frame
        first = piece.frames[0] * size
        if prefix is None or first >= len(prefix):
            return latents_TC
        num_given = min(len(prefix) - first, len(latents_TC))
        return torch.cat([prefix[first : first + num_given], latents_TC[num_given:]])

    def _caption(self, piece: Piece) -> Tensor:
        if piece.branch not in OWN_PROMPT:
            return self._null_caption
        return piece.condition.caption(piece.frames[0] // self.config.frames.chunk_width)

    def _condition(self, pieces: Sequence[Piece]) -> Tensor:
        """[N, E], float32: time, step size of a distilled network, and whether there is a prompt."""
        device, embed = self._null_caption.device, self.network.t_embedder
        times = embed(torch.tensor([piece.noise_level for piece in pieces], dtype=torch.float32, device=device))
        if self.config.sampling.distill:
            times = times + embed(
                torch.tensor([float(piece.tag) for piece in pieces], dtype=torch.float32, device=device)
            )
        return times + torch.stack([self._text_condition[piece.branch in CONDITIONAL] for piece in pieces])


def in_order(name: str, tensor: Tensor, order: Tensor) -> Tensor:
    """A published tensor with the channels of queries and keys in `channel_order`, if it has whole heads."""
    if len(tensor) % len(order):
        return tensor
    if name.endswith(("linear_qkv.q.weight", "linear_qkv.k.weight")):
        return tensor.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)
    if ".q_layernorm." in name or ".k_layernorm." in name:
        return tensor[order]
    return tensor


def geometry_of(config: MagiConfig) -> ModelGeometry:
    """The integers that memory depends on. All forwards of a video share one cache branch."""
    return ModelGeometry(
        num_layers=config.network.num_layers,
        num_query_heads=config.network.num_attention_heads,
        num_kv_heads=config.network.num_query_groups,
        head_dim=config.network.kv_channels,
        tokens_per_frame=config.frames.tokens_per_frame,
        frames_per_chunk=config.frames.chunk_width,
    )
