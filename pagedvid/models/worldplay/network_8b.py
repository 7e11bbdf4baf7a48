"""The 8B network (HunyuanVideo-1.5 style): double-stream blocks whose text half runs once per video.

Axes: F packed frames of n tokens each (T = F n), C channels of a token, N width, H heads, D head_dim.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagedvid.models.worldplay.layers import AttendTwice, RMSNorm, gated, modulated, split_heads
from pagedvid.models.worldplay.spec import Config8B
from pagedvid.models.worldplay.text_8b import (
    MLP,
    GlyphMapper,
    LinearModulation,
    NumberEmbedder,
    TextInputs,
    TextSide,
    TokenRefiner,
    VisionMapper,
)


@dataclass(frozen=True)
class TextKeys:
    """Keys and values of the text stream, one pair of [n, H, D] per layer; the same for the whole video."""

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class _Patches(nn.Module):
    def __init__(self, channels: int, width: int, patch: tuple[int, int, int]) -> None:
        super().__init__()
        self.proj = nn.Conv3d(channels, width, kernel_size=patch)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.proj.weight.flatten(1), self.proj.bias)


class _FinalLayer(nn.Module):
    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))
        self.linear = nn.Linear(width, channels)

    def forward(self, x_FnN: Tensor, condition_FN: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition_FN).chunk(2, dim=-1)
        return self.linear(modulated(x_FnN, shift, scale))


class DoubleBlock(TextSide):
    """One block: the inherited text half, and the vision half."""

    def __init__(self, width: int, num_heads: int, mlp_width: int) -> None:
        super().__init__(width, num_heads, mlp_width)
        self.img_mod = LinearModulation(width)
        self.img_attn_q, self.img_attn_k, self.img_attn_v = (nn.Linear(width, width) for _ in range(3))
        self.img_attn_q_norm, self.img_attn_k_norm = RMSNorm(width // num_heads), RMSNorm(width // num_heads)
        self.img_attn_proj, self.img_attn_prope_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.img_mlp = MLP(width, mlp_width, nn.GELU("tanh"))

    def forward(self, half: Callable[..., Any], *args: Any) -> Any:
        """Runs `DoubleBlock.text` or `DoubleBlock.vision`: both are calls of the block, which may have to be fetched
        for them (models/common/offload.py)."""
        return half(self, *args)

    def vision(self, x_FnN: Tensor, condition_FN: Tensor, layer: int, attend: AttendTwice) -> Tensor:
        """Vision tokens after this block."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.img_mod(condition_FN)
        y = modulated(x_FnN, shift1, scale1)
        q, k, v = (split_heads(part(y), self.num_heads) for part in (self.img_attn_q, self.img_attn_k, self.img_attn_v))
        rotary, projective = attend(layer, self.img_attn_q_norm(q), self.img_attn_k_norm(k), v)
        update = self.img_attn_proj(rotary.flatten(1)) + self.img_attn_prope_proj(projective.flatten(1))
        x_FnN = gated(x_FnN, gate1, update.view_as(x_FnN))
        return gated(x_FnN, gate2, self.img_mlp(modulated(x_FnN, shift2, scale2)))


class Network8B(nn.Module):
    """The whole network. Parameters are named as in the published checkpoint."""

    def __init__(self, config: Config8B) -> None:
        super().__init__()
        self.config = config
        width, num_heads = config.width, config.num_heads
        self.img_in = _Patches(2 * config.latent_channels + 1, width, config.patch)
        self.time_in, self.action_in = NumberEmbedder(width), NumberEmbedder(width)
        self.txt_in = TokenRefiner(config.text_channels, width, num_heads)
        self.byt5_in = GlyphMapper(config.glyph_channels, config.glyph_hidden, width)
        self.vision_in = VisionMapper(config.vision_channels, width)
        self.cond_type_embedding = nn.Embedding(3, width)
        blocks = [DoubleBlock(width, num_heads, config.mlp_width) for _ in range(config.num_layers)]
        self.double_blocks = nn.ModuleList(blocks)
        patch_size = config.patch[0] * config.patch[1] * config.patch[2]
        self.final_layer = _FinalLayer(width, config.latent_channels * patch_size)

    def encode_text(self, inputs: TextInputs) -> TextKeys:
        """The text pass: keys and values of every layer."""
        x = self.text_stream(inputs)
        condition = self.time_in(torch.zeros((), dtype=torch.float32, device=x.device))
        keys, values = [], []
        for block in self.double_blocks:
            x, k, v = block(DoubleBlock.text, x, condition)
            keys.append(k)
            values.append(v)
        return TextKeys(tuple(keys), tuple(values))

    def text_stream(self, inputs: TextInputs) -> Tensor:
        """Text tokens before the first block, [n, N]: image, quoted text, prompt."""
        types = self.cond_type_embedding.weight
        return torch.cat(
            [
                self.vision_in(inputs.vision_nC) + types[2],
                self.byt5_in(inputs.glyphs_nC) + types[1],
                self.txt_in(inputs.prompt_nC) + types[0],
            ]
        )

    def forward(self, tokens_FnC: Tensor, timesteps_F: Tensor, actions_F: Tensor, attend: AttendTwice) -> Tensor:
        """Flow velocity [F, n, latent channels x patch].

        `tokens`: latents, condition latents and mask of each token's patch, channel by channel. `attend` also brings in
        the text keys.
        """
        condition = self.time_in(timesteps_F) + self.action_in(actions_F)
        x = self.img_in(tokens_FnC)
        for layer, block in enumerate(self.double_blocks):
            x = block(DoubleBlock.vision, x, condition, layer, attend)
        return self.final_layer(x, condition)
