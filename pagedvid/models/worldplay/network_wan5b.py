"""The WAN-5B network (Wan 2.2 style): self-attention in two copies, cross-attention to the text.

Axes: F packed frames of n tokens each (T = F n), C channels of a token, N width, H heads, D head_dim, L text tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagedvid.models.worldplay.layers import (
    EPSILON,
    SINUSOID_CHANNELS,
    AttendTwice,
    RMSNorm,
    Sinusoid,
    full_attention,
    gated,
    modulated,
    split_heads,
)
from pagedvid.models.worldplay.spec import ConfigWan5B


@dataclass(frozen=True)
class TextSpan:
    """Consecutive packed frames that read one text."""

    num_frames: int
    text_LN: Tensor


class _Embedder(nn.Module):
    def __init__(self, channels: int, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.linear_1, self.act, self.linear_2 = nn.Linear(channels, width), activation, nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(self.act(self.linear_1(x.to(self.linear_1.weight.dtype))))


class _Conditions(nn.Module):
    """Timestep, action and text embedders."""

    def __init__(self, config: ConfigWan5B) -> None:
        super().__init__()
        self.sinusoid = Sinusoid()
        self.time_embedder = _Embedder(SINUSOID_CHANNELS, config.width, nn.SiLU())
        self.action_embedder = _Embedder(SINUSOID_CHANNELS, config.width, nn.SiLU())
        self.time_proj = nn.Linear(config.width, 6 * config.width)
        self.text_embedder = _Embedder(config.text_channels, config.width, nn.GELU("tanh"))

    def forward(self, timesteps_F: Tensor, actions_F: Tensor) -> tuple[Tensor, Tensor]:
        """(frames' embedding [F, N], modulation of the blocks [F, 6, N])."""
        embedded = self.time_embedder(self.sinusoid(timesteps_F)) + self.action_embedder(self.sinusoid(actions_F))
        return embedded, self.time_proj(F.silu(embedded)).unflatten(1, (6, -1))


class _Attention(nn.Module):
    """Projections of one attention; norms go over the whole width, before the head split."""

    def __init__(self, width: int, num_heads: int, has_projective_copy: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(width, width) for _ in range(3))
        self.norm_q, self.norm_k = RMSNorm(width), RMSNorm(width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])
        if has_projective_copy:
            self.to_out_prope = nn.ModuleList([nn.Linear(width, width)])

    def queries(self, x: Tensor) -> Tensor:
        return split_heads(self.norm_q(self.to_q(x)), self.num_heads)

    def keys(self, x: Tensor) -> Tensor:
        return split_heads(self.norm_k(self.to_k(x)), self.num_heads)

    def values(self, x: Tensor) -> Tensor:
        return split_heads(self.to_v(x), self.num_heads)


class _GELU(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, hidden)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.proj(x), approximate="tanh")


class _FeedForward(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.net = nn.Sequential(_GELU(width, hidden), nn.Identity(), nn.Linear(hidden, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Block(nn.Module):
    """Self-attention in both copies, cross-attention, MLP."""

    def __init__(self, config: ConfigWan5B) -> None:
        super().__init__()
        self.attn1 = _Attention(config.width, config.num_heads, has_projective_copy=True)
        self.attn2 = _Attention(config.width, config.num_heads, has_projective_copy=False)
        self.norm2 = nn.LayerNorm(config.width, eps=EPSILON)
        self.ffn = _FeedForward(config.width, config.mlp_width)
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 6, config.width, dtype=torch.float32))

    def forward(
        self, x_FnN: Tensor, modulation_F6N: Tensor, texts: Sequence[TextSpan], layer: int, attend: AttendTwice
    ) -> Tensor:
        """Tokens after this block."""
        shift1, scale1, gate1, shift2, scale2, gate2 = (self.scale_shift_table + modulation_F6N).unbind(1)
        y = modulated(x_FnN, shift1, scale1)
        rotary, projective = attend(layer, self.attn1.queries(y), self.attn1.keys(y), self.attn1.values(y))
        update = self.attn1.to_out[0](rotary.flatten(1)) + self.attn1.to_out_prope[0](projective.flatten(1))
        x_FnN = gated(x_FnN, gate1, update.view_as(x_FnN))
        x_FnN = x_FnN + self._read_text(self.norm2(x_FnN), texts)
        return gated(x_FnN, gate2, self.ffn(modulated(x_FnN, shift2, scale2)))

    def _read_text(self, y_FnN: Tensor, texts: Sequence[TextSpan]) -> Tensor:
        parts = y_FnN.split([span.num_frames for span in texts])
        read = [
            full_attention(self.attn2.queries(part), self.attn2.keys(span.text_LN), self.attn2.values(span.text_LN))
            for part, span in zip(parts, texts, strict=True)
        ]
        return self.attn2.to_out[0](torch.cat(read)).view_as(y_FnN)


class NetworkWan5B(nn.Module):
    """The whole network. Parameters are named as in the published checkpoint."""

    def __init__(self, config: ConfigWan5B) -> None:
        super().__init__()
        self.config = config
        token_channels = config.latent_channels * config.patch[0] * config.patch[1] * config.patch[2]
        self.patch_embedding = nn.Conv3d(config.latent_channels, config.width, config.patch, stride=config.patch)
        self.condition_embedder = _Conditions(config)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.scale_shift_table = nn.Parameter(torch.zeros(1, 2, config.width, dtype=torch.float32))
        self.proj_out = nn.Linear(config.width, token_channels)

    def encode_text(self, states_LC: Tensor) -> Tensor:
        """Embedded text [L, N]. Zero rows that fill up the prompt are read like all others."""
        return self.condition_embedder.text_embedder(states_LC)

    def forward(
        self,
        tokens_FnC: Tensor,
        timesteps_F: Tensor,
        actions_F: Tensor,
        texts: Sequence[TextSpan],
        attend: AttendTwice,
    ) -> Tensor:
        """Flow velocity [F, n, C]; a token's channels are (latent channel, patch row, patch column)."""
        embedded, modulation = self.condition_embedder(timesteps_F, actions_F)
        x = F.linear(tokens_FnC, self.patch_embedding.weight.flatten(1), self.patch_embedding.bias)
        for layer, block in enumerate(self.blocks):
            x = block(x, modulation, texts, layer, attend)
        shift, scale = (self.scale_shift_table + embedded.unsqueeze(1)).unbind(1)
        velocity = self.proj_out(modulated(x, shift, scale))  # (patch row, patch column, latent channel)
        return velocity.unflatten(-1, (-1, self.config.latent_channels)).transpose(-1, -2).flatten(-2)
