"""MAGI-1's transformer over packed ranges. Self-attention goes through `attend` only.

Every layer makes keys and values of the range's tokens, lets queries attend to what their range may see, adds
cross-attention to the range's caption, and gates both by the range's time. There is no shift or scale.

Axes: N ranges, T packed tokens, W hidden size, E condition size, H heads, D head channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from typing import SupportsIndex

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagedvid.engine.protocol import Attend
from pagedvid.handles import Compilable, layer_numbers
from pagedvid.host_state import compiled_as
from pagedvid.models.magi1.caption_operator import read_captions_in_graph
from pagedvid.models.magi1.layers import (
    CaptionEmbedder,
    CrossAttention,
    FeedForward,
    FloatNorm1p,
    LayerNorm1p,
    TimeEmbedder,
    interleaved,
    linear_in_float32,
)
from pagedvid.models.magi1.spec import PATCH, NetworkConfig
from pagedvid.rotary.grid_rotary import GridRotary

REFERENCE_TOKENS = 256
"""Row and column positions are scaled as if a frame had 16 x 16 tokens."""


@dataclass(frozen=True)
class RangeInputs(Compilable):
    """What the network knows of the packed ranges."""

    sizes: Sequence[int]
    """Tokens of each; all are equally long."""
    condition_NE: Tensor
    caption_rows: Sequence[Tensor]
    """Caption tokens of each, [m, X]; ranges with the same caption share one tensor."""


class Bands(nn.Module):
    """The trained frequencies of the rotary embedding, which `magi_rotary` makes tables of."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.bands = nn.Parameter(torch.empty(config.kv_channels // 8, dtype=torch.float32))


class QueryKeyValue(nn.Module):
    """Norm and the four projections: queries, queries of cross-attention, keys, values."""

    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size, kv = config.hidden_size, config.num_query_groups * config.kv_channels
        self.layer_norm = nn.LayerNorm(size, config.layernorm_epsilon, dtype=dtype)
        self.q = nn.Linear(size, size, bias=False, dtype=dtype)
        self.qx = nn.Linear(size, size, bias=False, dtype=dtype)
        self.k = nn.Linear(size, kv, bias=False, dtype=dtype)
        self.v = nn.Linear(size, kv, bias=False, dtype=dtype)
        self._head_dim = config.kv_channels

    def forward(self, x_TW: Tensor) -> tuple[Tensor, ...]:
        """q, qx [T, H, D]; k, v [T, KV heads, D]."""
        u = self.layer_norm(x_TW)
        return tuple(project(u).unflatten(1, (-1, self._head_dim)) for project in (self.q, self.qx, self.k, self.v))


class Attention(Compilable, nn.Module):
    """Self-attention and cross-attention side by side, projected together."""

    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        size, width, epsilon = config.hidden_size, config.kv_channels, config.layernorm_epsilon
        self.linear_qkv = QueryKeyValue(config, dtype)
        self.linear_kv_xattn = nn.Linear(
            config.caption_size, 2 * config.num_query_groups * width, bias=False, dtype=dtype
        )
        self.linear_proj = nn.Linear(2 * size, size, bias=False, dtype=dtype)
        self.q_layernorm, self.k_layernorm = FloatNorm1p(width, epsilon), FloatNorm1p(width, epsilon)
        self.q_layernorm_xattn = LayerNorm1p(width, epsilon, dtype=dtype)
        self.k_layernorm_xattn = LayerNorm1p(width, epsilon, dtype=dtype)
        self.cross = CrossAttention(config)

    def forward(self, layer: SupportsIndex, x_TW: Tensor, inputs: RangeInputs, attend: Attend) -> Tensor:
        """[T, W] -> [T, W], float32."""
        q, qx, k, v = self.linear_qkv(x_TW)
        own_THD = attend(layer, self.q_layernorm(q).to(v.dtype), self.k_layernorm(k).to(v.dtype), v)
        both = interleaved(own_THD.flatten(1), self.read_captions(self.q_layernorm_xattn(qx), inputs))
        return linear_in_float32(self.linear_proj, both)

    @compiled_as(read_captions_in_graph)
    def read_captions(self, q_THD: Tensor, inputs: RangeInputs) -> Tensor:
        """Cross-attention of normalised queries, [T, H * D]."""
        made = {id(rows): self.linear_kv_xattn(rows.to(q_THD.dtype)) for rows in inputs.caption_rows}
        kv = [made[id(rows)] for rows in inputs.caption_rows]
        return self.cross(q_THD, kv, inputs.sizes, self.k_layernorm_xattn)


class Gates(nn.Module):
    """The two gates of a layer from the condition."""

    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.proj = nn.Sequential(nn.Linear(config.condition_size, 2 * config.hidden_size, dtype=dtype))

    def forward(self, condition_NE: Tensor) -> tuple[Tensor, Tensor]:
        """Two of [N, W], each within -1..1."""
        first, second = torch.tanh(self.proj(F.silu(condition_NE))).chunk(2, dim=-1)
        return first, second


class Layer(nn.Module):
    """One layer."""

    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.ada_modulate_layer = Gates(config, dtype)
        self.self_attention = Attention(config, dtype)
        self.self_attn_post_norm = FloatNorm1p(config.hidden_size, config.layernorm_epsilon)
        self.mlp = FeedForward(config, dtype)
        self.mlp_post_norm = FloatNorm1p(config.hidden_size, config.layernorm_epsilon)

    def forward(self, layer: SupportsIndex, x_TW: Tensor, inputs: RangeInputs, attend: Attend) -> Tensor:
        """Hidden states [T, W] after the layer: gate first, then norm, then sum."""
        gates = self.ada_modulate_layer(inputs.condition_NE.to(x_TW.dtype))
        attended = self.self_attention(layer, x_TW, inputs, attend)
        x_TW = (x_TW + self.self_attn_post_norm(_gated(attended, gates[0]))).to(x_TW.dtype)
        return (x_TW + self.mlp_post_norm(_gated(self.mlp(x_TW), gates[1]))).to(x_TW.dtype)


class Blocks(nn.Module):
    """All layers and the last norm."""

    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, dtype) for _ in range(config.num_layers))
        self.numbers = layer_numbers(config.num_layers)
        self.final_layernorm = FloatNorm1p(config.hidden_size, config.layernorm_epsilon)


class Embedder(nn.Module):
    """Patches to hidden states; the published weight is that of a 3D convolution, [W, C, 1, 2, 2]."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.weight = nn.Parameter(
            torch.empty(config.hidden_size, config.in_channels, 1, PATCH, PATCH, dtype=torch.float32)
        )

    def forward(self, patches_TC: Tensor) -> Tensor:
        """[T, 4 C] in (row, column, channel) order -> [T, W], float32."""
        return F.linear(patches_TC, self.weight.squeeze(2).permute(0, 2, 3, 1).flatten(1))


class Output(nn.Module):
    """Hidden states to patches."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.linear = nn.Linear(config.hidden_size, PATCH * PATCH * config.in_channels, bias=False)


class MagiNetwork(nn.Module):
    """The whole transformer; its state dict has the published names."""

    def __init__(self, config: NetworkConfig, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.config, self.dtype = config, dtype
        self.x_embedder = Embedder(config)
        self.t_embedder = TimeEmbedder(config.condition_size, dtype)
        self.y_embedder = CaptionEmbedder(config)
        self.rope = Bands(config)
        self.videodit_blocks = Blocks(config, dtype)
        self.final_linear = Output(config)

    def forward(self, latents_TC: Tensor, inputs: RangeInputs, attend: Attend) -> Tensor:
        """Velocities [T, 4 C] of latents [T, 4 C], both float32 patches in (row, column, channel) order."""
        config = self.config
        patches = latents_TC.float() * config.x_rescale_factor
        if config.half_channel_vae:
            pixels = patches.unflatten(1, (PATCH * PATCH, -1))
            patches = torch.cat([pixels, pixels], dim=-1).flatten(1)
        x = self.x_embedder(patches).to(self.dtype)
        blocks = self.videodit_blocks
        for number, layer in zip(blocks.numbers, blocks.layers, strict=True):
            x = layer(number, x, inputs, attend)
        out = self.final_linear.linear(blocks.final_layernorm(x))
        out = out.unflatten(1, (PATCH * PATCH, -1))[..., : config.latent_channels].flatten(1)
        return out / config.x_rescale_factor


def _gated(x_TW: Tensor, gate_NW: Tensor) -> Tensor:
    """Every token times the gate of its range."""
    return (x_TW.unflatten(0, (gate_NW.shape[0], -1)) * gate_NW.unsqueeze(1)).flatten(0, 1)


def magi_rotary(bands: Tensor, rows: int, columns: int) -> GridRotary:
    """Rotary embedding of frames of `rows` x `columns` tokens, at least 2 x 2, by the position in the whole video.

    `bands`: [head_dim / 8], as trained: the frequencies of time, row and column alike. Three quarters of the pairs
    rotate, in the order of `channel_order`.
    """
    frequencies = bands.detach().float()
    scale = sqrt(rows * columns / REFERENCE_TOKENS)
    positions = (_centred(rows, scale), _centred(columns, scale))
    return GridRotary((frequencies, frequencies, frequencies), positions, "half", head_dim=8 * len(bands))


def channel_order(head_dim: int) -> Tensor:
    """Published channel of every channel here, int64 [head_dim].

    In a published head of d channels, c rotates with c + 3d/8 for c < 3d/8, and the last d/4 channels do not rotate.
    Inside pagedvid c rotates with c + d/2, so the channels of queries and keys are reordered when weights are loaded;
    scores do not change.

        published   | first 3d/8 | second 3d/8 | fixed d/4 |
        here        | first 3d/8 | fixed d/8   | second 3d/8 | fixed d/8 |
    """
    rotating, fixed = 3 * head_dim // 8, head_dim // 8
    first, second, rest = torch.arange(head_dim, dtype=torch.int64).split([rotating, rotating, 2 * fixed])
    return torch.cat([first, rest[:fixed], second, rest[fixed:]])


def _centred(size: int, scale: float) -> Tensor:
    """Positions of `size` rows or columns around 0, float32 [size]."""
    return (torch.arange(size, dtype=torch.float32) - (size - 1) / 2) * ((size / scale - 1) / (size - 1))
