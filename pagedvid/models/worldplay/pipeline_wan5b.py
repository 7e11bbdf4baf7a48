"""The WAN-5B model: cross-attention to the text, the first image written into latent frame 0."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from pagedvid.errors import ConfigError
from pagedvid.models.common.latent_grid import LatentGrid
from pagedvid.models.common.text_encoder import TextEncoder
from pagedvid.models.wan.base.text import cleaned
from pagedvid.models.worldplay.conditions import Condition
from pagedvid.models.worldplay.layers import AttendTwice, slot_rotary
from pagedvid.models.worldplay.memory import MEMORY_WAN
from pagedvid.models.worldplay.network_wan5b import NetworkWan5B, TextSpan
from pagedvid.models.worldplay.pipeline import ContextOf, WorldPlayModel
from pagedvid.models.worldplay.schedule import MEMORY_TIMESTEP, timesteps_wan
from pagedvid.models.worldplay.spec import geometry_of

TEXT_TOKENS = 512
"""Rows of an encoded prompt, padding included (HY-WorldPlay, wan/inference/pipeline_wan_w_mem_relative_rope.py)."""


class WorldPlayWan5B(WorldPlayModel):
    """HY-WorldPlay WAN-5B; `weights.load_wan5b` is the usual way to get one."""

    name = "hy-worldplay-5b"
    policy = MEMORY_WAN
    image_name = "image_latent"

    def __init__(
        self,
        network: NetworkWan5B,
        grid: LatentGrid,
        points: Tensor | None = None,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        self._text_encoder = text_encoder
        self.network = network.eval().requires_grad_(False)
        config = network.config
        rope = slot_rotary(config.rope_channels, grid.token_rows, grid.token_columns, config.rope_theta)
        super().__init__(geometry_of(config, grid), grid, rope, points)

    @property
    @override
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.network.blocks)

    @property
    @override
    def placement(self) -> Tensor:
        return self.network.scale_shift_table

    @override
    def timesteps(self, num_denoise_steps: int | None) -> tuple[float, ...]:
        return timesteps_wan(num_denoise_steps)

    def encode_text(self, embeddings: Mapping[str, Tensor]) -> Tensor:
        """Embedded text [L, N], padding rows included, as the model was trained."""
        return self.network.encode_text(self.states(embeddings, "prompt_embeds", self.network.config.text_channels))

    def with_prompt(self, prompt: str, embeddings: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The prompt's rows, unless the request brings its own: padding rows are zeroed, and read all the same."""
        if "prompt_embeds" in embeddings:
            return embeddings
        if self._text_encoder is None:
            raise ConfigError(
                f"the embeddings lack prompt_embeds; they have {', '.join(sorted(embeddings)) or 'nothing'}. "
                "Encode the prompt, or set model.text_encoder"
            )
        encoded = self._text_encoder.encode(cleaned(prompt), TEXT_TOKENS)
        rows = encoded["embeddings"].masked_fill(encoded["mask"][:, None] == 0, 0.0)
        return {**embeddings, "prompt_embeds": rows.unsqueeze(0)}

    def initial_latents(self, condition: Condition, seed: int, chunk_index: int) -> Tensor:
        """Noise, and the first image in frame 0."""
        latents = self.noise(seed, chunk_index)
        if chunk_index == 0:
            latents[: self.grid.tokens_per_frame] = condition.image_nC
        return latents

    def timestep(self, noise_level: float, frame: int) -> float:
        """As `WorldPlayModel.timestep`, but frame 0, the first image, always has that of nearly clean frames."""
        return MEMORY_TIMESTEP if frame == 0 else noise_level

    def velocity(
        self,
        latents_FnC: Tensor,
        timesteps_F: Tensor,
        actions_F: Tensor,
        frames: Sequence[Sequence[int]],
        conditions: Sequence[Condition],
        attend_with: Callable[[ContextOf | None], AttendTwice],
    ) -> Tensor:
        """Zero for frame 0, which stays the first image."""
        texts = [TextSpan(len(own), condition.text) for own, condition in zip(frames, conditions, strict=True)]
        tokens = latents_FnC.to(self.placement.dtype)
        velocity = self.network(tokens, timesteps_F, actions_F, texts, attend_with(None))
        is_given = torch.zeros(len(velocity), 1, 1, dtype=torch.bool, device=velocity.device)
        for row, frame in enumerate(frame for own in frames for frame in own):
            if frame == 0:
                is_given[row] = True
        return velocity.masked_fill(is_given, 0.0)
