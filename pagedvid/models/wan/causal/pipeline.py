"""Wan 2.1 run causally, as Self-Forcing, CausVid and Krea do: a chunk in a few distilled steps, then a clean pass.

A step predicts the clean chunk, x0 = x - level * velocity, and adds new noise for the next level:
(1 - next) * x0 + next * noise (`add_noise` of Self-Forcing's scheduler). So that this noise depends on seed, chunk and
step only, and not on what else is in the batch, it is drawn with the chunk and travels in its latents:

    channels of a token    | chunk | noise of step 2 | noise of step 3 | ... |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.schedule import Schedule
from pagedvid.models.common.text_encoder import TextEncoder
from pagedvid.models.wan.base.pipeline import Condition, LatentDecoder, WanModel
from pagedvid.models.wan.causal.spec import MAX_TIMESTEP, WanCausalSettings, wan_causal_schedule


class WanCausal(WanModel):
    """A `WanTransformer3DModel` with weights distilled to causal chunks."""

    settings: WanCausalSettings

    def __init__(
        self,
        transformer: Any,
        settings: WanCausalSettings,
        text: TextEncoder | None = None,
        decoder: Callable[[], LatentDecoder] | None = None,
        encode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """For the arguments see `WanModel`."""
        super().__init__(transformer, settings, text, decoder, encode=encode)
        self._levels = settings.noise_levels

    def prompts(self, prompt: str) -> Mapping[str, str]:
        """One role: guidance is distilled into the weights."""
        return {"cond": prompt}

    def schedule(
        self, condition: Condition, num_frames: int, num_denoise_steps: int | None, window: Window
    ) -> Schedule:
        """Chunk by chunk in the distilled steps, over the model's own window. Raises ConfigError."""
        num_given = condition.num_prefix_chunks
        return wan_causal_schedule(self.settings, self.geometry, num_frames, num_denoise_steps, window, num_given)

    def initial_latents(self, condition: Condition, seed: int, chunk_index: int) -> Tensor:
        """The chunk's noise and that of its later steps, float32 [chunk_tokens, steps * K]. A given chunk has no noise:
        zeros make it as wide as others."""
        num_draws = len(self.settings.denoise_timesteps)
        if condition.prefix is not None and chunk_index < condition.prefix.num_chunks:
            return F.pad(condition.prefix.chunk(chunk_index), (0, (num_draws - 1) * self.grid.token_channels))
        return self.noise(seed, chunk_index, num_draws)

    def predict(self, latents_PCFRS: Tensor, noise_levels_P: Sequence[float], text_PLN: Tensor) -> Tensor:
        """Flow velocity; all frames of a chunk have one timestep."""
        timesteps = torch.tensor(
            [level * MAX_TIMESTEP for level in noise_levels_P], dtype=torch.float32, device=latents_PCFRS.device
        )
        (velocity,) = self.transformer(latents_PCFRS, timesteps, text_PLN, return_dict=False)
        return velocity

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """The predicted clean chunk, made as noisy as the next level by the noise drawn for it."""
        channels = self.grid.token_channels
        advanced = latents_TC.clone()
        advanced[:, :channels] -= noise_level * predictions["cond"]
        if next_noise_level > 0:
            draw = self._levels.index(next_noise_level)
            noise = latents_TC[:, draw * channels : (draw + 1) * channels]
            advanced[:, :channels].mul_(1 - next_noise_level).add_(noise, alpha=next_noise_level)
        return advanced
