"""Text side of the 8B model: three sources become one text stream, whose keys and values are computed once per video.

Axes: n text tokens, N width, H heads, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagedvid.models.worldplay.layers import EPSILON, RMSNorm, Sinusoid, full_attention, layer_norm, split_heads


@dataclass(frozen=True)
class TextInputs:
    """What the text and image encoders of one video gave; padding rows are already cut off."""

    prompt_nC: Tensor
    """States of the language model."""
    glyphs_nC: Tensor
    """ByT5 states of quoted text; may have no rows."""
    vision_nC: Tensor
    """SigLIP states of the first image."""


class NumberEmbedder(nn.Module):
    """Timestep or action id -> width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sinusoid = Sinusoid()
        self.mlp = nn.Sequential(nn.Linear(256, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, numbers: Tensor) -> Tensor:
        """[...] -> [..., N]."""
        return self.mlp(self.sinusoid(numbers).to(self.mlp[0].weight.dtype))


class MLP(nn.Module):
    """Two linear layers around an activation."""

    def __init__(self, width: int, hidden: int, activation: nn.Module) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, hidden), activation, nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Same shape."""
        return self.fc2(self.act(self.fc1(x)))


class _Projection(nn.Module):
    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear_1, self.linear_2 = nn.Linear(channels, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


class _Modulation(nn.Sequential):
    """Linear layer after a SiLU; its weights are called `1.weight`."""

    def __init__(self, width: int, num_parts: int) -> None:
        super().__init__(nn.SiLU(), nn.Linear(width, num_parts * width))


class _RefinerBlock(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=EPSILON), nn.LayerNorm(width, eps=EPSILON)
        self.self_attn_qkv, self.self_attn_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = MLP(width, 4 * width, nn.SiLU())
        self.adaLN_modulation = _Modulation(width, 2)

    def forward(self, x_nN: Tensor, condition_N: Tensor) -> Tensor:
        gate1, gate2 = self.adaLN_modulation(condition_N).chunk(2, dim=-1)
        q, k, v = (split_heads(part, self.num_heads) for part in self.self_attn_qkv(self.norm1(x_nN)).chunk(3, dim=-1))
        x_nN = x_nN + gate1 * self.self_attn_proj(full_attention(q, k, v))
        return x_nN + gate2 * self.mlp(self.norm2(x_nN))


class _Refiner(nn.Module):
    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_RefinerBlock(width, num_heads) for _ in range(2))


class TokenRefiner(nn.Module):
    """Refines the language model's states."""

    def __init__(self, channels: int, width: int, num_heads: int) -> None:
        super().__init__()
        self.t_embedder = NumberEmbedder(width)
        self.c_embedder = _Projection(channels, width)
        self.input_embedder = nn.Linear(channels, width)
        self.individual_token_refiner = _Refiner(width, num_heads)

    def forward(self, states_nC: Tensor) -> Tensor:
        """[n, C] -> [n, N]."""
        zero = torch.zeros((), dtype=torch.float32, device=states_nC.device)
        condition = self.t_embedder(zero) + self.c_embedder(states_nC.mean(0))
        x = self.input_embedder(states_nC)
        for block in self.individual_token_refiner.blocks:
            x = block(x, condition)
        return x


class GlyphMapper(nn.Module):
    """Maps ByT5 states."""

    def __init__(self, channels: int, hidden: tuple[int, int], width: int) -> None:
        super().__init__()
        self.layernorm = nn.LayerNorm(channels)
        self.fc1, self.fc2 = nn.Linear(channels, hidden[0]), nn.Linear(hidden[0], hidden[1])
        self.fc3 = nn.Linear(hidden[1], width)

    def forward(self, states_nC: Tensor) -> Tensor:
        """[n, C] -> [n, N]."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(self.layernorm(states_nC))))))


class VisionMapper(nn.Module):
    """Maps the first image's states."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.LayerNorm(channels), nn.Linear(channels, channels), nn.GELU(), nn.Linear(channels, width),
            nn.LayerNorm(width),
        )  # fmt: skip

    def forward(self, states_nC: Tensor) -> Tensor:
        """[n, C] -> [n, N]."""
        return self.proj(states_nC)


class LinearModulation(nn.Module):
    """Linear layer after a SiLU; its weights are called `linear.weight`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 6 * width)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        """Shift, scale and gate of attention, then of the MLP."""
        return self.linear(F.silu(condition)).chunk(6, dim=-1)


class TextSide(nn.Module):
    """The text half of one double-stream block."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.txt_mod = LinearModulation(width)
        self.txt_attn_q, self.txt_attn_k, self.txt_attn_v = (nn.Linear(width, width) for _ in range(3))
        self.txt_attn_q_norm, self.txt_attn_k_norm = RMSNorm(width // num_heads), RMSNorm(width // num_heads)
        self.txt_attn_proj = nn.Linear(width, width)
        self.txt_mlp = MLP(width, mlp_width, nn.GELU("tanh"))

    def text(self, x_nN: Tensor, condition_N: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(text stream after this block [n, N], keys [n, H, D], values [n, H, D])."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.txt_mod(condition_N)
        y = layer_norm(x_nN) * (1 + scale1) + shift1
        q, k, v = (split_heads(part(y), self.num_heads) for part in (self.txt_attn_q, self.txt_attn_k, self.txt_attn_v))
        q, k = self.txt_attn_q_norm(q), self.txt_attn_k_norm(k)
        x_nN = x_nN + gate1 * self.txt_attn_proj(full_attention(q, k, v))
        return x_nN + gate2 * self.txt_mlp(layer_norm(x_nN) * (1 + scale2) + shift2), k, v
