"""The demo model's network: a diffusion transformer over packed chunks, and what a prompt lets it expect.

Axes: N chunks of S tokens (T = N * S packed tokens), C latent channels, W width, H heads, D head_dim, M prompts,
X things, A slots of one thing. Self-attention is left to the caller: each block calls `attend` once with normalised,
un-rotated q and k.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagedvid.engine.protocol import Attend
from pagedvid.handles import layer_numbers
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.demo.vocabulary import ABSENT, ATTRIBUTES, MAX_THINGS, NUM_SLOTS, NUM_VALUES
from pagedvid.rotary.grid_rotary import GridRotary


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learnable gain."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x, same shape and dtype."""
        return F.rms_norm(x, x.shape[-1:], self.gain.to(x.dtype), eps=1e-6)


def modulate(x_NSW: Tensor, shift_NW: Tensor, scale_NW: Tensor) -> Tensor:
    """Tokens normalised, scaled by 1 + scale and shifted, chunk by chunk (AdaLN)."""
    normed = F.layer_norm(x_NSW, x_NSW.shape[-1:], eps=1e-6)
    return torch.addcmul(shift_NW.unsqueeze(1), normed, 1 + scale_NW.unsqueeze(1))


class Block(nn.Module):
    """Self-attention over chunk and history, then an MLP; both modulated by the chunk's condition (AdaLN)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.num_heads = config.num_heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = RMSNorm(config.head_dim), RMSNorm(config.head_dim)
        self.out = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, config.mlp_ratio * width)
        self.mlp_out = nn.Linear(config.mlp_ratio * width, width)
        nn.init.zeros_(self.modulation.weight)
        for layer in (self.modulation, self.qkv, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, x_NSW: Tensor, condition_NW: Tensor, layer: SupportsIndex, attend: Attend) -> Tensor:
        """Hidden states after this block; `layer` is passed on to `attend`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition_NW).chunk(6, dim=-1)
        q, k, v = (
            self.qkv(modulate(x_NSW, shift1, scale1))
            .view(-1, 3, self.num_heads, x_NSW.shape[-1] // self.num_heads)
            .unbind(1)
        )
        attended_THD = attend(layer, self.q_norm(q), self.k_norm(k), v)
        x_NSW = torch.addcmul(x_NSW, gate1.unsqueeze(1), self.out(attended_THD.reshape(x_NSW.shape)))
        hidden = F.gelu(self.mlp_in(modulate(x_NSW, shift2, scale2)), approximate="tanh")
        return torch.addcmul(x_NSW, gate2.unsqueeze(1), self.mlp_out(hidden))


@dataclass(frozen=True)
class Expectation:
    """What a prompt alone lets one expect of every chunk; made once per video, or per batch with a leading axis M."""

    hidden_SW: Tensor
    """Goes into the blocks, token by token."""
    picture_SC: Tensor
    """Latents, to be shown where history and the chunk's own latents say nothing better."""
    pooled_W: Tensor
    """Modulates the blocks."""

    def of_prompt(self, number: int) -> Expectation:
        """That of one prompt of a batch."""
        return Expectation(self.hidden_SW[number], self.picture_SC[number], self.pooled_W[number])

    @staticmethod
    def stack(expectations: Sequence[Expectation]) -> Expectation:
        """One for all prompts of a batch."""
        parts = ((e.hidden_SW, e.picture_SC, e.pooled_W) for e in expectations)
        return Expectation(*(torch.stack(tensors) for tensors in zip(*parts, strict=True)))


class Canvas(nn.Module):
    """Slots of M prompts [M, NUM_SLOTS] -> `Expectation`, thing by thing with the same layers, then added up.

    Close to pure noise the tokens say next to nothing; this path meets no noise, so "moving left" is easy to learn.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        # Every slot of a thing and the background, and, last, which of how many things it is.
        self.values = nn.Embedding((len(ATTRIBUTES) + 2) * NUM_VALUES, width)
        nn.init.normal_(self.values.weight, std=0.5)
        self.thing_1, self.thing_2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.pool = nn.Linear(MAX_THINGS * width, width)
        self.places = nn.Parameter(torch.randn(config.chunk_tokens, width, dtype=torch.float32))
        self.film = nn.Linear(width, 2 * width)
        self.hidden_1, self.hidden_2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, 2 * width)
        self.out = nn.Linear(2 * width, width)
        self.picture = nn.Linear(2 * width, config.latent_channels)
        for layer in (self.out, self.picture):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, slots_MK: Tensor) -> Expectation:
        """Expectation with a leading axis M."""
        things_MXA, present_MX = self._thing_values(slots_MK)
        summed_MXW = self.values(things_MXA).sum(dim=2)
        things_MXW = summed_MXW + self.thing_2(
            F.gelu(self.thing_1(F.rms_norm(summed_MXW, summed_MXW.shape[-1:])), approximate="tanh")
        )
        scale, shift = self.film(things_MXW).unsqueeze(2).chunk(2, dim=-1)
        hidden = F.gelu(self.hidden_1(self.places * (1 + scale) + shift), approximate="tanh")
        hidden = F.gelu(self.hidden_2(hidden), approximate="tanh")
        hidden_MSV = (hidden * present_MX[:, :, None, None]).sum(dim=1)
        # Tokens of pure noise are large; without the factor this path has no effect for thousands of training steps.
        return Expectation(8 * self.out(hidden_MSV), self.picture(hidden_MSV), self.pool(things_MXW.flatten(1)))

    def _thing_values(self, slots_MK: Tensor) -> tuple[Tensor, Tensor]:
        """(embedding rows [M, X, A + 2], whether the thing exists [M, X])."""
        things_MXA = slots_MK[:, : NUM_SLOTS - 1].unflatten(1, (MAX_THINGS, len(ATTRIBUTES)))
        present_MX = things_MXA[..., 0] != ABSENT
        num_things = present_MX.sum(dim=1, keepdim=True)
        order = torch.arange(MAX_THINGS, device=slots_MK.device) * (MAX_THINGS + 1) + num_things
        background = slots_MK[:, -1:].expand_as(order)
        columns = torch.cat([things_MXA, background[..., None], order[..., None]], dim=-1)
        return columns + NUM_VALUES * torch.arange(columns.shape[-1], device=columns.device), present_MX


def noise_features(levels_N: Tensor, width: int) -> Tensor:
    """Sines and cosines of noise levels in 0..1 at geometric frequencies, float32 [N, width]."""
    frequencies = torch.exp(torch.linspace(0, math.log(200), width // 2, dtype=torch.float32, device=levels_N.device))
    angles = levels_N.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Transformer(nn.Module):
    """Predicts the clean latents of every chunk from its noisy latents, its noise level and the expectation."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.canvas = Canvas(config)
        self.noise_in, self.noise_out = nn.Linear(width, width), nn.Linear(width, width)
        self.patch_in = nn.Linear(config.latent_channels, width)
        # Rotary positions are relative; edges of the frame are not, so every token of a chunk has its own offset too.
        self.places = nn.Parameter(torch.randn(config.chunk_tokens, width, dtype=torch.float32) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.layers = layer_numbers(config.num_layers)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, config.latent_channels)
        # How much of the expected picture a token still shows: nothing once history or its own latents say better.
        self.picture_gate = nn.Linear(width, 1)
        for layer in (self.final_modulation, self.patch_out, self.picture_gate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.ones_(self.picture_gate.bias)

    def forward(self, latents_TC: Tensor, levels_N: Tensor, expectation: Expectation, attend: Attend) -> Tensor:
        """Clean latents [T, C] of N packed chunks; each of the M prompts belongs to N / M consecutive chunks."""
        num_chunks = len(levels_N)
        repeats = num_chunks // len(expectation.pooled_W)
        expected_NSW, picture_NSC, pooled_NW = (
            x.repeat_interleave(repeats, dim=0)
            for x in (expectation.hidden_SW, expectation.picture_SC, expectation.pooled_W)
        )
        x_NSW = self.patch_in(latents_TC).view(num_chunks, self.config.chunk_tokens, -1) + self.places + expected_NSW
        features_NW = noise_features(levels_N, self.config.width).to(self.noise_in.weight.dtype)
        condition_NW = F.silu(self.noise_out(F.silu(self.noise_in(features_NW))) + pooled_NW)
        for layer, block in zip(self.layers, self.blocks, strict=True):
            x_NSW = block(x_NSW, condition_NW, layer, attend)
        shift, scale = self.final_modulation(condition_NW).chunk(2, dim=-1)
        x_NSW = modulate(x_NSW, shift, scale)
        return (self.patch_out(x_NSW) + self.picture_gate(x_NSW) * picture_NSC).view(latents_TC.shape)


def demo_rotary(head_dim: int, rows: int, columns: int) -> GridRotary:
    """Rotary embedding of frames of `rows` x `columns` tokens: half of the pairs rotate with the frame, a quarter with
    the row and a quarter with the column. Raises ValueError for a `head_dim` that cannot be split so."""
    if head_dim % 8:
        raise ValueError(f"head_dim is {head_dim}; it must be a multiple of 8 to split its pairs 2:1:1")
    time_pairs, space_pairs = head_dim // 4, head_dim // 8
    # Fastest pair: one radian per position. Slowest: about one period over several windows (time) or frames (space).
    time = 64.0 ** (-torch.arange(time_pairs, dtype=torch.float32) / time_pairs)
    space = 8.0 ** (-torch.arange(space_pairs, dtype=torch.float32) / space_pairs)
    positions = (torch.arange(rows, dtype=torch.int64), torch.arange(columns, dtype=torch.int64))
    return GridRotary((time, space, space), positions, "half", num_cached=256)
