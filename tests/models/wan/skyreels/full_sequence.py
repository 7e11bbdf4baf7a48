"""A block-causal rollout without any cache, by diffusers' own model: every step runs all frames so far through its own
block mask (`_set_ar_attention`), with timestep 0 for the finished ones and the current one's for the last block.

Given frames come first, at a timestep of their own (`addnoise_condition` of the pipelines).
"""

from __future__ import annotations

import torch
from torch import Tensor

GIVEN_TIMESTEP = 20


@torch.no_grad()
def flow(
    transformer, given: list[Tensor], clean: list[Tensor], x: Tensor, timestep: int, text: Tensor, **how
) -> Tensor:
    """Velocity of the last block; blocks [C, frames, R, S]."""
    frames = torch.cat([*given, *clean, x], dim=1)
    timesteps = torch.zeros(1, frames.shape[1], dtype=torch.int64)
    timesteps[:, : sum(block.shape[1] for block in given)] = GIVEN_TIMESTEP
    timesteps[:, -x.shape[1] :] = timestep
    out = transformer(frames[None], timesteps, text, enable_diffusion_forcing=True, return_dict=False, **how)[0]
    return out[0, :, -x.shape[1] :]


def rollout(transformer, noises, scheduler, num_steps: int, texts, guidance_scale: float, given=(), **how) -> Tensor:
    """Latents [frames, C, R, S] of a video after the given blocks; `texts` are those of both branches."""
    clean: list[Tensor] = []
    for x in noises:
        scheduler.set_timesteps(num_steps)
        for timestep in scheduler.timesteps:
            cond, uncond = (flow(transformer, given, clean, x, int(timestep), text, **how) for text in texts)
            x = scheduler.step(uncond + guidance_scale * (cond - uncond), timestep, x, return_dict=False)[0]
        clean.append(x)
    return torch.cat(clean, dim=1).transpose(0, 1)
