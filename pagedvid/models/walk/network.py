"""The walk model's network: a diffusion transformer over packed chunks whose only condition is where its tokens are.

Axes: N chunks of S tokens (T = N * S packed tokens), C latent channels, W width, H heads, D head_dim. Self-attention is
left to the caller, as in the demo model, whose blocks these are.

Training begins with a network that copies: queries and keys share one constant vector, so that after rotation by world
coordinates (rotary.py) a token reads its own cell in every frame that showed it; the way from latents to values and
back to latents is the identity up to scale; and pure noise has no effect. After a hundred steps of training, a place
that is seen again is a blurred copy of what was there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagedvid.engine.protocol import Attend
from pagedvid.handles import layer_numbers
from pagedvid.models.demo.network import Block, modulate, noise_features
from pagedvid.models.demo.spec import TransformerConfig

SAME_CELL_HEADS = 2
"""Heads that read their own cell when training begins, in every layer but the first, where all do."""
SAME_CELL_BIAS = 1.5
"""Of the first channel of each rotary pair, in queries and keys of these heads."""
OTHER_BIAS = 0.7
"""Standard deviation of the biases of the other heads, which read random places around them."""
SHARPNESS = 1.5
"""Gain of normalised queries, and of keys: scores are its square times as far apart."""
CLEAN_DEVIATION = 0.35
"""Standard deviation of clean latents, which leave the network from normalised hidden states."""


class Transformer(nn.Module):
    """Predicts the clean latents of every chunk from its noisy latents and its noise level."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.noise_in, self.noise_out = nn.Linear(width, width), nn.Linear(width, width)
        self.patch_in = nn.Linear(config.latent_channels, width)
        blocks = [Block(config) for _ in range(config.num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.layers = layer_numbers(config.num_layers)
        self.final_modulation = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, config.latent_channels)
        for linear in (self.final_modulation, self.patch_out):
            nn.init.zeros_(linear.weight)
            nn.init.zeros_(linear.bias)
        self._begin_with_copying(blocks)

    @torch.no_grad()
    def _begin_with_copying(self, blocks: Sequence[Block]) -> None:
        nn.init.orthogonal_(self.patch_in.weight)
        self.patch_out.weight.copy_(CLEAN_DEVIATION * self.patch_in.weight.T)
        for layer, block in enumerate(blocks):
            _read_own_cell(block, self.config, self.config.num_heads if layer == 0 else SAME_CELL_HEADS)

    def forward(self, latents_TC: Tensor, levels_N: Tensor, attend: Attend) -> Tensor:
        """Clean latents [T, C] of N packed chunks with these noise levels, 0 to 1."""
        features_NW = noise_features(levels_N, self.config.width).to(self.noise_in.weight.dtype)
        condition_NW = F.silu(self.noise_out(F.silu(self.noise_in(features_NW))))
        latents_NSC = latents_TC.view(len(levels_N), -1, latents_TC.shape[-1])
        x_NSW = self.patch_in(latents_NSC * _told_by_noisy(levels_N).to(latents_TC.dtype)[:, None, None])
        for layer, block in zip(self.layers, self.blocks, strict=True):
            x_NSW = block(x_NSW, condition_NW, layer, attend)
        shift, scale = self.final_modulation(condition_NW).chunk(2, dim=-1)
        return self.patch_out(modulate(x_NSW, shift, scale)).view(latents_TC.shape)


def _told_by_noisy(levels_N: Tensor) -> Tensor:
    """The factor that makes noisy latents x_t = (1 - t) * clean + t * noise the best linear estimate of clean ones of
    variance 1. It is 0 for pure noise, which therefore cannot mask what history says."""
    signal = 1 - levels_N
    return signal / (signal.square() + levels_N.square())


def _read_own_cell(block: Block, config: TransformerConfig, num_heads: int) -> None:
    """The first heads of a block read their own cell, and attention adds what it reads as it is."""
    queries, keys, _ = block.qkv.bias.view(3, config.num_heads, config.head_dim)
    for bias in (queries, keys):
        bias[:num_heads, : config.head_dim // 2] = SAME_CELL_BIAS
        bias[num_heads:].normal_(std=OTHER_BIAS)
    for norm in (block.q_norm, block.k_norm):
        norm.gain.fill_(SHARPNESS)
    values = block.qkv.weight.view(3, config.width, config.width)[2]
    nn.init.orthogonal_(values)
    block.out.weight.copy_(values.T)
    attention_gate = block.modulation.bias.view(-1, config.width)[2]
    attention_gate.fill_(1.0)
