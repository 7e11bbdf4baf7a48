"""SkyReels-V2 diffusion forcing as a `VideoModel`: block after block or staggered, two branches, guidance between them.

Steps are those of the published pipeline (base/unipc.py); their state travels in the latents.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import Attend
from pagedvid.engine.schedule import Schedule
from pagedvid.models.common.text_encoder import TextEncoder
from pagedvid.models.wan.base.pipeline import Condition, LatentDecoder, WanModel
from pagedvid.models.wan.base.unipc import NUM_TRAIN_TIMESTEPS, FlowUniPC
from pagedvid.models.wan.skyreels.schedule import skyreels_schedule
from pagedvid.models.wan.skyreels.spec import SkyReelsSettings

SLOW_FPS = 16
"""Frames per second that the transformer calls 0; every other rate is 1 (`fps_embeds` of the pipeline)."""


class SkyReelsV2(WanModel):
    """A `SkyReelsV2Transformer3DModel` trained by diffusion forcing."""

    settings: SkyReelsSettings

    def __init__(
        self,
        transformer: Any,
        settings: SkyReelsSettings,
        text: TextEncoder | None = None,
        decoder: Callable[[], LatentDecoder] | None = None,
        encode: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """For the arguments see `WanModel`. The transformer's own block mask is switched off: a range is one block that
        sees itself and the history."""
        super().__init__(transformer, settings, text, decoder, settings.branches, encode)
        transformer._set_ar_attention(1)
        self.sampler = FlowUniPC(settings.shift)

    def prompts(self, prompt: str) -> Mapping[str, str]:
        """The negative prompt for the unconditional prediction."""
        both = {"cond": prompt, "uncond": self.settings.negative_prompt}
        return {role: both[role] for role in self.geometry.branches}

    def schedule(
        self, condition: Condition, num_frames: int, num_denoise_steps: int | None, window: Window
    ) -> Schedule:
        """Block by block or staggered, over the model's own window. Raises ConfigError."""
        num_given = condition.num_prefix_chunks
        return skyreels_schedule(self.settings, self.geometry, num_frames, num_denoise_steps, window, num_given)

    def initial_latents(self, condition: Condition, seed: int, chunk_index: int) -> Tensor:
        """Noise, and room for the sampler, float32 [chunk_tokens, 4 K]. A given block has as much noise as
        `addnoise_condition` says, so that the model takes it for what it is: not quite one of its own."""
        noise, prefix = self.noise(seed, chunk_index), condition.prefix
        if prefix is not None and chunk_index < prefix.num_chunks:
            noise = prefix.chunk(chunk_index).lerp(noise, self.settings.addnoise_condition / NUM_TRAIN_TIMESTEPS)
        return self.sampler.begin(noise)

    def predict(
        self, latents_PCFRS: Tensor, noise_levels_P: Sequence[float], text_PLN: Tensor, attend: Attend
    ) -> Tensor:
        """Flow velocity.

        All frames of a block have one timestep, a whole number as in the pipeline. It is given once per block: one per
        frame (`enable_diffusion_forcing`) would give the same, but spread all six modulations over all tokens.
        """
        timesteps = torch.tensor(
            [self.sampler.timestep(level) for level in noise_levels_P], dtype=torch.int64, device=latents_PCFRS.device
        )
        fps = None
        if self.transformer.config.inject_sample_info:
            fps = torch.tensor([int(self.settings.fps != SLOW_FPS)], dtype=torch.int64, device=latents_PCFRS.device)
        return self.network(latents_PCFRS, timesteps, text_PLN, fps, attend)

    def advance(
        self, latents_TC: Tensor, predictions: Mapping[str, Tensor], noise_level: float, next_noise_level: float
    ) -> Tensor:
        """One move of the sampler along the guided velocity."""
        velocity = predictions["cond"]
        if "uncond" in predictions:
            velocity = predictions["uncond"].lerp(velocity, self.settings.guidance_scale)
        return self.sampler.advance(latents_TC, velocity, noise_level, next_noise_level)
