"""The small parts of MAGI-1's network: norms, the condition, cross-attention, the feed-forward layer.

Modules carry the names of the published state dict. Which parts compute in float32 whatever the dtype of the rest
follows the published model: time and text embedders, query and key norms of self-attention, norms after the branches,
the last norm and the last projection, and the sum over heads.

Axes: N ranges, T packed tokens, S tokens of a range, W hidden size, E condition size, X caption size.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagedvid.models.common.fp8_linear import Fp8Linear
from pagedvid.models.magi1.spec import NUM_GROUPS_OUT, NetworkConfig

NUM_FREQUENCIES = 128
TIME_SCALE = 1000.0
NULL_TOKENS = 50
"""Rows of the null caption that mean "no prompt"."""


class LayerNorm1p(nn.LayerNorm):
    """Layer norm whose stored weight is the gain less one."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last axis."""
        return F.layer_norm(x, self.normalized_shape, self.weight + 1, self.bias, self.eps)


class FloatNorm1p(LayerNorm1p):
    """The same in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__(size, eps=eps, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Normalises the last axis; float32."""
        return super().forward(x.float())


class TimeEmbedder(nn.Module):
    """Times 0..1, and lengths of steps, as vectors [N, E], float32."""

    def __init__(self, size: int, sinusoid_dtype: torch.dtype) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2 * NUM_FREQUENCIES, size, dtype=torch.float32),
            nn.SiLU(),
            nn.Linear(size, size, dtype=torch.float32),
        )
        steps = torch.arange(NUM_FREQUENCIES, dtype=torch.float32, device="cpu")
        self.frequencies = torch.exp(-math.log(10000.0) * steps / NUM_FREQUENCIES)
        self._sinusoid_dtype = sinusoid_dtype

    def forward(self, times_N: Tensor) -> Tensor:
        """Float32 throughout: angles go up to 8000, where the last bit of a frequency, in which processors differ,
        moves the velocities by 1e-4."""
        self.frequencies = self.frequencies.to(times_N.device)  # copied there by the first call
        angles = (times_N.float()[:, None] * self.frequencies) * TIME_SCALE
        waves = torch.cat([angles.cos(), angles.sin()], dim=1)
        return self.mlp(waves.to(self._sinusoid_dtype).float())


class CaptionEmbedder(nn.Module):
    """Caption rows as tokens for cross-attention, and the text part of the condition."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        channels, float32 = config.caption_channels, torch.float32
        self.null_caption_embedding = nn.Parameter(torch.empty(config.caption_max_length, channels, dtype=float32))
        self.y_proj_xattn = nn.Sequential(nn.Linear(channels, config.caption_size, dtype=float32), nn.SiLU())
        self.y_proj_adaln = nn.Sequential(nn.Linear(channels, config.condition_size, dtype=float32))

    def tokens(self, rows: Tensor) -> Tensor:
        """[m, caption channels] -> [m, X], float32."""
        return self.y_proj_xattn(rows.float())

    def null_tokens(self, special_sC: Tensor | None = None) -> Tensor:
        """Tokens of "no prompt", [50, X], the special rows first."""
        null = self.null_caption_embedding
        rows = null if special_sC is None else torch.cat([special_sC.to(null), null])
        return self.tokens(rows[:NULL_TOKENS])

    def condition(self, has_prompt: bool) -> Tensor:
        """The text part of the condition, [E]: one of two rows of the null caption, never the caption itself."""
        return self.y_proj_adaln(self.null_caption_embedding[-2 if has_prompt else -1])


class CrossAttention(nn.Module):
    """Queries of every range over the caption tokens of that range; no positions. Heads share keys in groups."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self._head_dim, self._num_kv_heads = config.kv_channels, config.num_query_groups
        self._epsilon = config.layernorm_epsilon

    def forward(self, q_THD: Tensor, kv_MW: Sequence[Tensor], sizes: Sequence[int], key_norm: nn.Module) -> Tensor:
        """[T, H * D]. `kv_MW`: keys and values of each range's caption, [m, 2 * KV heads * D], interleaved by head."""
        outs = []
        for q, kv in zip(q_THD.split(list(sizes)), kv_MW, strict=True):
            if not len(kv):
                outs.append(torch.zeros_like(q))
                continue
            k, v = kv.unflatten(1, (self._num_kv_heads, 2 * self._head_dim)).chunk(2, dim=-1)
            k = key_norm(k)
            out = F.scaled_dot_product_attention(
                q.transpose(0, 1)[None], k.transpose(0, 1)[None], v.transpose(0, 1)[None], enable_gqa=True
            )
            outs.append(out[0].transpose(0, 1))
        return torch.cat(outs).flatten(1)


class FeedForward(nn.Module):
    """Norm, then GELU or SwiGLU between two projections."""

    def __init__(self, config: NetworkConfig, dtype: torch.dtype) -> None:
        super().__init__()
        self._is_gated = config.gated_linear_unit
        size, inner = config.hidden_size, config.ffn_hidden_size
        self.layer_norm = nn.LayerNorm(size, config.layernorm_epsilon, dtype=dtype)
        self.linear_fc1 = nn.Linear(size, 2 * inner if self._is_gated else inner, bias=False, dtype=dtype)
        self.linear_fc2 = nn.Linear(inner, size, bias=False, dtype=dtype)

    def forward(self, x_TW: Tensor) -> Tensor:
        """[T, W] -> [T, W]."""
        inner = self.linear_fc1(self.layer_norm(x_TW))
        if self._is_gated:
            gate, value = inner.chunk(2, dim=-1)
            return self.linear_fc2(F.silu(gate) * value)
        return self.linear_fc2(F.gelu(inner))


def interleaved(own_TW: Tensor, caption_TW: Tensor) -> Tensor:
    """Outputs of self- and cross-attention in blocks of an eighth of their width, alternating: [T, 2 W]."""
    pair = torch.stack([x.unflatten(1, (NUM_GROUPS_OUT, -1)) for x in (own_TW, caption_TW)], dim=2)
    return pair.flatten(1)


def linear_in_float32(layer: nn.Linear | Fp8Linear, x: Tensor) -> Tensor:
    """What a linear layer without bias makes of [..., I], float32 whatever the dtype of its weights."""
    return layer(x.float()) if isinstance(layer, Fp8Linear) else F.linear(x.float(), layer.weight.float())
