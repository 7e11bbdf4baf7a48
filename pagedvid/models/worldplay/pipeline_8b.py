"""The 8B model: text keys as context of every attention, the first image as condition channels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from typing_extensions import override

from pagedvid.models.common.latent_grid import LatentGrid
from pagedvid.models.worldplay.conditions import Condition
from pagedvid.models.worldplay.layers import AttendTwice, slot_rotary
from pagedvid.models.worldplay.memory import MEMORY_8B
from pagedvid.models.worldplay.network_8b import Network8B, TextKeys
from pagedvid.models.worldplay.pipeline import ContextOf, WorldPlayModel
from pagedvid.models.worldplay.schedule import timesteps_8b
from pagedvid.models.worldplay.spec import geometry_of
from pagedvid.models.worldplay.text_8b import TextInputs


class WorldPlay8B(WorldPlayModel):
    """HY-WorldPlay 8B; `weights.load_8b` is the usual way to get one."""

    name = "hy-worldplay-8b"
    policy = MEMORY_8B
    image_name = "image_cond"

    def __init__(self, network: Network8B, grid: LatentGrid, points: Tensor | None = None) -> None:
        self.network = network.eval().requires_grad_(False)
        config = network.config
        rope = slot_rotary(config.rope_channels, grid.token_rows, grid.token_columns, config.rope_theta)
        super().__init__(geometry_of(config, grid), grid, rope, points)

    @property
    @override
    def blocks(self) -> Sequence[nn.Module]:
        return list(self.network.double_blocks)

    @property
    @override
    def placement(self) -> Tensor:
        return self.network.cond_type_embedding.weight

    @override
    def timesteps(self, num_denoise_steps: int | None) -> tuple[float, ...]:
        return timesteps_8b(num_denoise_steps)

    def encode_text(self, embeddings: Mapping[str, Tensor]) -> TextKeys:
        """Keys and values of the text stream."""
        config = self.network.config
        return self.network.encode_text(
            TextInputs(
                self.states(embeddings, "prompt_embeds", config.text_channels, "prompt_mask"),
                self.states(embeddings, "byt5_states", config.glyph_channels, "byt5_mask"),
                self.states(embeddings, "vision_states", config.vision_channels),
            )
        )

    @override
    def velocity(
        self,
        latents_FnC: Tensor,
        timesteps_F: Tensor,
        actions_F: Tensor,
        frames: Sequence[Sequence[int]],
        conditions: Sequence[Condition],
        attend_with: Callable[[ContextOf | None], AttendTwice],
    ) -> Tensor:
        def text_of(layer: int) -> list[tuple[Tensor, Tensor] | None]:
            texts = [condition.text for condition in conditions]
            return [(text.keys[layer], text.values[layer]) for text in texts]

        tokens = torch.cat([latents_FnC, self._condition_channels(latents_FnC, frames, conditions)], dim=-1)
        return self.network(tokens.to(self.placement.dtype), timesteps_F, actions_F, attend_with(text_of))

    def _condition_channels(
        self, latents_FnC: Tensor, frames: Sequence[Sequence[int]], conditions: Sequence[Condition]
    ) -> Tensor:
        """The first image and a mask of ones at frame 0, zeros elsewhere: [F, n, C + patch]."""
        num_mask = self.grid.token_channels // self.grid.channels
        channels = latents_FnC.new_zeros(*latents_FnC.shape[:2], self.grid.token_channels + num_mask)
        places = [(frame, condition) for own, condition in zip(frames, conditions, strict=True) for frame in own]
        for row, (frame, condition) in enumerate(places):
            if frame == 0:
                channels[row, :, : self.grid.token_channels] = condition.image_nC
                channels[row, :, self.grid.token_channels :] = 1.0
        return channels
