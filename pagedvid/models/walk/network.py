"""The walk model's network: a diffusion transformer over packed chunks whose only condition is where its tokens are.

Axes: N chunks of S tokens (T = N * S packed tokens), C latent channels, W width, H heads, D head_dim. Self-attention is
left to the caller, as in the demo model, whose blocks these are.

Attention begins where it should end: queries and keys start with the same constant vector, so that after rotation by
world coordinates (rotary.py) a token looks at its own cell in every earlier frame. Copying what was seen there is
then a matter of hundreds of training steps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagedvid.engine.protocol import Attend
from pagedvid.models.demo.network import Block, modulate, noise_features
from pagedvid.models.demo.spec import TransformerConfig

SAME_CELL_HEADS = 2
"""Heads of every layer that look at their own cell when training begins."""
SAME_CELL_BIAS = 1.5
"""Of the first channel of each rotary pair, in queries and keys of these heads, when training begins."""
SHARPNESS = 1.5
"""Gain of normalised queries, and of keys, when training begins: scores are its square times as far apart."""


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
        self.final_modulation = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, config.latent_channels)
        for layer in (self.final_modulation, self.patch_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for block in blocks:
            _look_at_own_cell(block, config)

    def forward(self, latents_TC: Tensor, levels_N: Tensor, attend: Attend) -> Tensor:
        """Clean latents [T, C] of N packed chunks with these noise levels, 0 to 1."""
        features_NW = noise_features(levels_N, self.config.width).to(self.noise_in.weight.dtype)
        condition_NW = F.silu(self.noise_out(F.silu(self.noise_in(features_NW))))
        latents_NSC = latents_TC.view(len(levels_N), -1, latents_TC.shape[-1])
        x_NSW = self.patch_in(latents_NSC * _told_by_noisy(levels_N).to(latents_TC.dtype)[:, None, None])
        for layer, block in enumerate(self.blocks):
            x_NSW = block(x_NSW, condition_NW, layer, attend)
        shift, scale = self.final_modulation(condition_NW).chunk(2, dim=-1)
        return self.patch_out(modulate(x_NSW, shift, scale)).view(latents_TC.shape)


def _told_by_noisy(levels_N: Tensor) -> Tensor:
    """What noisy latents x_t = (1 - t) * clean + t * noise are worth: the factor that makes them the best linear
    estimate of clean ones of variance 1. Pure noise gives nothing, and cannot drown what history says."""
    signal = 1 - levels_N
    return signal / (signal.square() + levels_N.square())


@torch.no_grad()
def _look_at_own_cell(block: Block, config: TransformerConfig) -> None:
    """The first heads of a block begin with their own cell, the others each at random places around it."""
    queries, keys, _ = block.qkv.bias.view(3, config.num_heads, config.head_dim)
    for bias in (queries, keys):
        bias[:SAME_CELL_HEADS, : config.head_dim // 2] = SAME_CELL_BIAS
        bias[SAME_CELL_HEADS:].normal_(std=0.7)
    for norm in (block.q_norm, block.k_norm):
        norm.gain.fill_(SHARPNESS)
