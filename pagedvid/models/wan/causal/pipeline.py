"""Wan run causally, as Self-Forcing, CausVid, Krea and LongLive do: a chunk in a few steps, then a clean pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import Attend
from pagedvid.engine.schedule import Schedule
from pagedvid.models.common.text_encoder import TextEncoder
from pagedvid.models.wan.base.pipeline import Condition, LatentDecoder, WanModel
from pagedvid.models.wan.causal.spec import WanCausalSettings, wan_causal_schedule


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
        self.sampler = settings.sampler

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
        """The chunk's noise, and room for what the sampler keeps, float32 [chunk_tokens, K or more]. A given chunk has
        no noise: zeros make it as wide as others."""
        num_draws, prefix = self.sampler.num_draws, condition.prefix
        if prefix is not None and chunk_index < prefix.num_chunks:
            clean = F.pad(prefix.chunk(chunk_index), (0, (num_draws - 1) * self.grid.token_channels))
            return self.sampler.begin(clean)
        return self.sampler.begin(self.noise(seed, chunk_index, num_draws))

    def predict(
        self, latents_PCFRS: Tensor, noise_levels_P: Sequence[float], text_PLN: Tensor, attend: Attend
    ) -> Tensor:
        """Flow velocity; all frames of a chunk have one timestep."""
        timesteps = torch.tensor(
            [self.sampler.timestep(level) for level in noise_levels_P], dtype=torch.float32, device=latents_PCFRS.device
        )
        return self.network(latents_PCFRS, timesteps, text_PLN, None, attend)

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """One move of the sampler."""
        return self.sampler.advance(latents_TC, predictions["cond"], noise_level, next_noise_level)
