"""MAGI-1 as a `VideoModel`: captions in, latent frames out, several chunks in flight.

Frames come out as latents (the VAE is not part of pagedvid): float32 [frames, C, H, W].
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import Attend, Decoder, PrefixFormat
from pagedvid.engine.schedule import Range, Schedule
from pagedvid.errors import ConfigError, PromptError
from pagedvid.models.common.chunk_by_chunk import check_whole_chunks, chunk_noise
from pagedvid.models.common.stateless_decoder import StatelessDecoder
from pagedvid.models.common.text_encoder import TextEncoder
from pagedvid.models.magi1.conditioning import MagiCondition, read_captions, read_prefix
from pagedvid.models.magi1.network import MagiNetwork, RangeInputs, magi_rotary
from pagedvid.models.magi1.schedule import magi_schedule
from pagedvid.models.magi1.spec import PATCH, FrameConfig, MagiConfig, SamplingConfig, geometry_of
from pagedvid.models.magi1.special_tokens import SpecialTokens

OWN_PROMPT = {"cond", "alone"}
"""Roles whose ranges read their chunk's caption; the others read the null text."""
CONDITIONAL = {"cond", "alone", "clean"}
"""Roles of a conditional forward."""
INPUTS = ("embeddings", "prefix")
ALONE_SHARE = 0.3
"""Weight of the prediction that saw only the chunk itself."""
TIME_TOLERANCE = 1e-7


class MagiModel:
    """MAGI-1 of any size. The schedule decides what is kept, not the configured window."""

    positions = "absolute"
    max_window_chunks = 2**31

    def __init__(
        self,
        config: MagiConfig,
        network: MagiNetwork,
        text_encoder: TextEncoder | None = None,
        special_tokens: SpecialTokens | None = None,
    ) -> None:
        """`special_tokens`: for the prompts that the text encoder encodes, and the null text."""
        self.config = config
        self._text_encoder = text_encoder
        self.name = config.name
        self.network = network.eval().requires_grad_(False)
        self.geometry = geometry_of(config)
        self.frames_per_second = config.frames.fps / config.frames.temporal_downsample_factor
        self.rope = magi_rotary(network.rope.bands, config.frames.rows, config.frames.columns)
        embedder = network.y_embedder
        self._null_caption = embedder.null_tokens(None if special_tokens is None else special_tokens.null)
        before = () if special_tokens is None else special_tokens.captions
        self._special = tuple(embedder.tokens(rows.to(self._null_caption.device)) for rows in before)
        self._text_condition = {has_prompt: embedder.condition(has_prompt) for has_prompt in (True, False)}

    @property
    def blocks(self) -> Sequence[nn.Module]:
        """The network's blocks, in the order in which they run."""
        return list(self.network.videodit_blocks.layers)

    def prepare(self, prompt: str, inputs: Mapping[str, Any], num_frames: int) -> MagiCondition:
        """Captions from `inputs["embeddings"]`, as they are, or from the prompt behind the special tokens if there is a
        text encoder; given frames from `inputs["prefix"]`. For both files see conditioning.py."""
        unknown = sorted(set(inputs) - set(INPUTS))
        if unknown:
            raise ConfigError(f"{self.name} takes the inputs {', '.join(INPUTS)}, not {', '.join(unknown)}")
        device, network, frames = self._null_caption.device, self.config.network, self.config.frames
        rows = self._caption_rows(prompt, inputs)
        captions = tuple(self.network.y_embedder.tokens(caption.to(device)) for caption in rows)
        prefix_TC, num_given = None, 0
        if "prefix" in inputs:
            prefix = read_prefix(inputs["prefix"], network, frames)
            prefix_TC, num_given = tokens_of(prefix).to(device), prefix.shape[1]
        return MagiCondition(
            captions,
            prefix_TC,
            special=() if "embeddings" in inputs else self._special,
            num_chunks=-(-(num_given + num_frames) // frames.chunk_width),
            max_tokens=network.caption_max_length,
        )

    def _caption_rows(self, prompt: str, inputs: Mapping[str, Any]) -> tuple[Tensor, ...]:
        """The rows of every caption, each [m, caption channels]. Raises ConfigError, PromptError."""
        network = self.config.network
        if "embeddings" in inputs:
            return read_captions(inputs["embeddings"], network)
        if self._text_encoder is not None:
            return read_captions(self._text_encoder.encode(prompt, network.caption_max_length), network)
        raise PromptError(
            f"{self.name} has no embeddings for the prompt {prompt!r}: give the request a caption file (its input "
            '"embeddings"), or set model.text_encoder'
        )

    def prefix_format(self, window: Window) -> PrefixFormat | None:
        """None: its prefix is a file of latents, because it has no VAE."""
        return None

    def schedule(
        self, condition: MagiCondition, num_frames: int, num_denoise_steps: int | None, window: Window
    ) -> Schedule:
        """Chunks in flight; `window` is ignored, the look-back is the model's own."""
        frames = self.config.frames
        given = 0 if condition.prefix_TC is None else len(condition.prefix_TC) // frames.tokens_per_frame
        return magi_schedule(self.config.sampling, frames.chunk_width, num_denoise_steps, num_frames, given)

    def initial_latents(self, condition: MagiCondition, seed: int, chunk_index: int) -> Tensor:
        """Noise of one chunk, [chunk_tokens, 4 C], drawn on the CPU, so it is the same everywhere."""
        channels = PATCH * PATCH * self.config.network.latent_channels
        return chunk_noise(self.geometry.chunk_tokens, channels, seed, chunk_index).to(self._null_caption.device)

    def forward(
        self, latents_TC: Tensor, ranges: Sequence[Range], conditions: Sequence[MagiCondition], attend: Attend
    ) -> Tensor:
        """Velocities [T, 4 C] of the packed ranges, each of them one chunk. Raises ShapeError."""
        check_whole_chunks(self.name, self.geometry, latents_TC, ranges)
        size = self.geometry.chunk_tokens
        packed = zip(latents_TC.split(size), ranges, conditions, strict=True)
        given = torch.cat([self._with_prefix(*chunk) for chunk in packed])
        inputs = RangeInputs([size] * len(ranges), self._condition(ranges), self._captions(ranges, conditions))
        return self.network(given, inputs, attend)

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """One Euler step along the guided velocity; levels are times, from 0 (noise) to 1 (clean)."""
        return latents_TC + (next_noise_level - noise_level) * velocity(predictions, noise_level, self.config.sampling)

    def decoder(self, condition: MagiCondition) -> Decoder:
        """`decode`: the output is the latents themselves."""
        return StatelessDecoder(self.decode)

    def decode(self, latents_TC: Tensor) -> np.ndarray:
        """Latent frames, float32 [frames, C, H, W]."""
        return frames_of(latents_TC.float().cpu(), self.config.frames).transpose(0, 1).contiguous().numpy()

    def _with_prefix(self, latents_TC: Tensor, part: Range, condition: MagiCondition) -> Tensor:
        """The range's latents with the given frames in their places."""
        prefix, size = condition.prefix_TC, self.config.frames.tokens_per_frame
        first = part.frames[0] * size
        if prefix is None or first >= len(prefix):
            return latents_TC
        num_given = min(len(prefix) - first, len(latents_TC))
        return torch.cat([prefix[first : first + num_given], latents_TC[num_given:]])

    def _captions(self, ranges: Sequence[Range], conditions: Sequence[MagiCondition]) -> list[Tensor]:
        """Caption tokens of each range; those of one chunk are one tensor, whose keys and values are made once."""
        made: dict[tuple[int, int], Tensor] = {}
        captions = []
        for part, condition in zip(ranges, conditions, strict=True):
            chunk = part.frames[0] // self.config.frames.chunk_width
            key = id(condition), chunk
            if part.role in OWN_PROMPT and key not in made:
                made[key] = condition.caption(chunk)
            captions.append(made[key] if part.role in OWN_PROMPT else self._null_caption)
        return captions

    def _condition(self, ranges: Sequence[Range]) -> Tensor:
        """[N, E], float32: time, step length for a distilled network, and whether there is a prompt."""
        device, embed = self._null_caption.device, self.network.t_embedder
        times = embed(torch.tensor([part.noise_level for part in ranges], dtype=torch.float32, device=device))
        if self.config.sampling.distill:
            lengths = [float(part.tag) for part in ranges]
            times = times + embed(torch.tensor(lengths, dtype=torch.float32, device=device))
        return times + torch.stack([self._text_condition[part.role in CONDITIONAL] for part in ranges])


def tokens_of(latents_CFHW: Tensor) -> Tensor:
    """Latent frames [C, F, H, W] -> tokens [T, 4 C] in (frame, row, column) order.

    A token is a patch of 2 x 2 latents, its numbers in the order (row, column, channel).
    """
    patches = latents_CFHW.unflatten(3, (-1, PATCH)).unflatten(2, (-1, PATCH))  # C F rows a columns b
    return patches.permute(1, 2, 4, 3, 5, 0).flatten(3, 5).flatten(0, 2).contiguous()


def frames_of(latents_TC: Tensor, frames: FrameConfig) -> Tensor:
    """Tokens [T, 4 C] -> latent frames [C, F, H, W]."""
    patches = latents_TC.unflatten(1, (PATCH, PATCH, -1)).unflatten(0, (-1, frames.rows, frames.columns))
    return patches.permute(5, 0, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3).contiguous()


def velocity(predictions: Mapping[str, Tensor], time: float, sampling: SamplingConfig) -> Tensor:
    """The velocity by which a chunk advances, from its predictions by role; see schedule.py for the roles.

    One forward a step: the prediction itself; for a nearly clean chunk mixed with the one that saw nothing but itself.
    Three forwards, one after the other: with prompt and history (c), with history only (h), with neither (u), combined
    as (1 - p) u + (p - s) h + s c, where the strengths p and s depend on the chunk's time.
    """
    conditional = predictions["cond"]
    if "alone" in predictions:
        return (1 - ALONE_SHARE) * conditional + ALONE_SHARE * predictions["alone"]
    if "uncond" not in predictions:
        return conditional
    index = sum(start - TIME_TOLERANCE < time for start in sampling.cfg_t_range) - 1
    history, text = sampling.prev_chunk_scales[index], sampling.text_scales[index]
    return (1 - history) * predictions["uncond"] + (history - text) * predictions["null"] + text * conditional
