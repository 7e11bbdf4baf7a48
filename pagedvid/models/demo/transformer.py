"""The demo model's network: a text-conditioned diffusion transformer over packed chunks.

Axes: N chunks of S tokens (T = N * S packed tokens), C latent channels, W width, H heads, D head_dim, M prompts,
L words. Self-attention is left to the caller: each block calls `attend` once with normalised, un-rotated q and k.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagedvid.models.base import Attend


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the network; stored beside the weights."""

    latent_channels: int = 192
    chunk_tokens: int = 128
    width: int = 192
    num_heads: int = 3
    num_layers: int = 6
    mlp_ratio: int = 4
    num_words: int = 35
    max_words: int = 16
    num_text_layers: int = 1

    @property
    def head_dim(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis with a learnable gain."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(size))

    def forward(self, x: Tensor) -> Tensor:
        """Normalised x, same shape and dtype."""
        return F.rms_norm(x, x.shape[-1:], self.gain.to(x.dtype), eps=1e-6)


def plain_attention(q_BHSD: Tensor, k_BHSD: Tensor, v_BHSD: Tensor) -> Tensor:
    """Scaled attention in three calls: its backward pass with few keys takes a CPU a third of the fused one's time."""
    scores = (q_BHSD * q_BHSD.shape[-1] ** -0.5) @ k_BHSD.transpose(-1, -2)
    return torch.softmax(scores, dim=-1) @ v_BHSD


def _modulate(x_NSW: Tensor, shift_NW: Tensor, scale_NW: Tensor) -> Tensor:
    normed = F.layer_norm(x_NSW, x_NSW.shape[-1:], eps=1e-6)
    return torch.addcmul(shift_NW.unsqueeze(1), normed, 1 + scale_NW.unsqueeze(1))


class Block(nn.Module):
    """Self-attention over chunk and history, cross-attention to the words, MLP; AdaLN from the chunk's condition."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, head_dim = config.width, config.head_dim
        self.num_heads = config.num_heads
        self.modulation = nn.Linear(width, 6 * width)
        self.qkv = nn.Linear(width, 3 * width)
        self.q_norm, self.k_norm = RMSNorm(head_dim), RMSNorm(head_dim)
        self.out = nn.Linear(width, width)
        self.text_q = nn.Linear(width, width)
        self.text_kv = nn.Linear(width, 2 * width)
        self.text_out = nn.Linear(width, width)
        self.mlp_in = nn.Linear(width, config.mlp_ratio * width)
        self.mlp_out = nn.Linear(config.mlp_ratio * width, width)
        for layer in (self.modulation, self.text_out):
            nn.init.zeros_(layer.weight)
        for layer in (self.modulation, self.qkv, self.out, self.text_q, self.text_kv, self.text_out):
            nn.init.zeros_(layer.bias)

    def forward(self, x_NSW: Tensor, condition_NW: Tensor, text_MLW: Tensor, layer: int, attend: Attend) -> Tensor:
        """Hidden states after this block; `layer` is passed on to `attend`."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition_NW).chunk(6, dim=-1)
        x_NSW = torch.addcmul(
            x_NSW, gate1.unsqueeze(1), self._self_attention(_modulate(x_NSW, shift1, scale1), layer, attend)
        )
        x_NSW = x_NSW + self._cross_attention(F.layer_norm(x_NSW, x_NSW.shape[-1:], eps=1e-6), text_MLW)
        hidden = F.gelu(self.mlp_in(_modulate(x_NSW, shift2, scale2)), approximate="tanh")
        return torch.addcmul(x_NSW, gate2.unsqueeze(1), self.mlp_out(hidden))

    def _self_attention(self, x_NSW: Tensor, layer: int, attend: Attend) -> Tensor:
        q, k, v = self.qkv(x_NSW).view(-1, 3, self.num_heads, self.q_norm.gain.numel()).unbind(1)
        out_THD = attend(layer, self.q_norm(q), self.k_norm(k), v)
        return self.out(out_THD.reshape(x_NSW.shape))

    def _cross_attention(self, x_NSW: Tensor, text_MLW: Tensor) -> Tensor:
        num_prompts, num_words, width = text_MLW.shape
        q = self.text_q(x_NSW).view(num_prompts, -1, self.num_heads, width // self.num_heads).transpose(1, 2)
        kv = self.text_kv(text_MLW).view(num_prompts, num_words, 2, self.num_heads, -1)
        k, v = kv.permute(2, 0, 3, 1, 4)
        out = plain_attention(q, k, v)
        return self.text_out(out.transpose(1, 2).reshape(x_NSW.shape))


class TextEncoder(nn.Module):
    """Word numbers [M, L] -> states [M, 1 + L, W]: the bag of words, then the words in their context.

    Padding is a word of its own, so no mask is needed.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.words = nn.Embedding(config.num_words, config.width)
        self.positions = nn.Parameter(torch.randn(config.max_words, config.width) * 0.02)
        nn.init.normal_(self.words.weight, std=0.5)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.num_heads,
                dim_feedforward=2 * config.width,
                dropout=0.0,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.num_text_layers)
        )
        self.norm = RMSNorm(config.width)

    def forward(self, words_ML: Tensor) -> Tensor:
        """Bag of words and word states of M prompts."""
        bag_M1W = self.words(words_ML).sum(dim=1, keepdim=True)
        x_MLW = self.words(words_ML) + self.positions
        for layer in self.layers:
            x_MLW = layer(x_MLW)
        return torch.cat([F.rms_norm(bag_M1W, bag_M1W.shape[-1:]), self.norm(x_MLW)], dim=1)


class Canvas(nn.Module):
    """What a prompt alone lets one expect in every token: bag of words [M, W] -> hidden states and a picture.

    Close to pure noise the tokens say next to nothing; this path meets no noise, so "moving left" is easy to learn.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.places = nn.Parameter(torch.randn(config.chunk_tokens, width))
        self.film = nn.Linear(width, 2 * width)
        self.hidden_1, self.hidden_2 = nn.Linear(width, 2 * width), nn.Linear(2 * width, 2 * width)
        self.out = nn.Linear(2 * width, width)
        self.picture = nn.Linear(2 * width, config.latent_channels)
        for layer in (self.out, self.picture):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, bag_MW: Tensor) -> tuple[Tensor, Tensor]:
        """Expectation for M prompts, to go into ([M, S, W]) and to come out of ([M, S, C]) each chunk's blocks."""
        scale_M1W, shift_M1W = self.film(bag_MW).unsqueeze(1).chunk(2, dim=-1)
        hidden = F.gelu(self.hidden_1(self.places * (1 + scale_M1W) + shift_M1W), approximate="tanh")
        hidden = F.gelu(self.hidden_2(hidden), approximate="tanh")
        # Tokens of pure noise are loud; without the factor this path needs thousands of steps to be heard.
        return 8 * self.out(hidden), self.picture(hidden)


def noise_features(levels_N: Tensor, width: int) -> Tensor:
    """Sines and cosines of noise levels in 0..1 at geometric frequencies, float32 [N, width]."""
    frequencies = torch.exp(torch.linspace(0, math.log(200), width // 2, device=levels_N.device))
    angles = levels_N.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class Transformer(nn.Module):
    """Predicts the clean latents of every chunk from its noisy latents, its noise level and the words of its prompt."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.text = TextEncoder(config)
        self.text_pool = nn.Linear(width, width)
        self.noise_in, self.noise_out = nn.Linear(width, width), nn.Linear(width, width)
        self.patch_in = nn.Linear(config.latent_channels, width)
        # Rotary positions are relative; edges of the frame are not, so every token of a chunk has its own offset too.
        self.places = nn.Parameter(torch.randn(config.chunk_tokens, width) * 0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.final_modulation = nn.Linear(width, 2 * width)
        self.patch_out = nn.Linear(width, config.latent_channels)
        for layer in (self.final_modulation, self.patch_out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.canvas = Canvas(config)
        # How much of the expected picture a token still shows: nothing once history or its own latents say better.
        self.picture_gate = nn.Linear(width, 1)
        nn.init.zeros_(self.picture_gate.weight)
        nn.init.ones_(self.picture_gate.bias)

    def forward(self, latents_TC: Tensor, levels_N: Tensor, text_MLW: Tensor, attend: Attend) -> Tensor:
        """Clean latents [T, C] of N packed chunks; each of the M prompts belongs to N / M consecutive chunks."""
        num_chunks, num_prompts = len(levels_N), len(text_MLW)
        repeats = num_chunks // num_prompts
        expected_NSW, picture_NSC = (x.repeat_interleave(repeats, dim=0) for x in self.canvas(text_MLW[:, 0]))
        x_NSW = self.patch_in(latents_TC).view(num_chunks, self.config.chunk_tokens, -1) + self.places
        x_NSW = x_NSW + expected_NSW
        pooled_NW = self.text_pool(text_MLW.mean(dim=1)).repeat_interleave(repeats, dim=0)
        features_NW = noise_features(levels_N, self.config.width).to(self.noise_in.weight.dtype)
        condition_NW = F.silu(self.noise_out(F.silu(self.noise_in(features_NW))) + pooled_NW)
        for layer, block in enumerate(self.blocks):
            x_NSW = block(x_NSW, condition_NW, text_MLW, layer, attend)
        shift, scale = self.final_modulation(condition_NW).chunk(2, dim=-1)
        x_NSW = _modulate(x_NSW, shift, scale)
        return (self.patch_out(x_NSW) + self.picture_gate(x_NSW) * picture_NSC).view(latents_TC.shape)
