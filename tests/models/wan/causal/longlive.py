"""LongLive 2.0's rollout as its repository does it (pipeline/causal_diffusion_inference.py), without scene cuts, retold
over the modules of diffusers: Self-Forcing's cache, and UniPC over the noise levels of Wan's own scheduler.

Nothing of pagedvid is used.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tests.models.wan.causal.self_forcing import SelfForcing


def wan_scheduler(num_steps: int, shift: float):
    """diffusers' UniPC with the table that wan/utils/fm_solvers_unipc.py makes."""
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True)
    scheduler.set_timesteps(num_steps)
    training = 1.0 - np.linspace(1, 1 / 1000, 1000)[::-1]
    even = np.linspace(training[0], training[-1], num_steps + 1)[:-1]
    sigmas = shift * even / (1 + (shift - 1) * even)
    scheduler.sigmas = torch.from_numpy(np.append(sigmas, 0.0).astype(np.float32))
    scheduler.timesteps = torch.from_numpy(1000 * sigmas).to(torch.int64)
    return scheduler


@torch.no_grad()
def longlive_rollout(
    reference: SelfForcing,
    noises: Sequence[Tensor],
    num_steps: int,
    shift: float,
    text: Tensor,
    given: Sequence[Tensor],
) -> Tensor:
    """Latents [frames, C, R, S] from each chunk's noise [C, frames, R, S]. `given`: clean chunks that come first, of
    which only keys and values are made (its `initial_latent`, for the extension of videos)."""
    done = []
    for clean in given:
        reference.commit(clean.double(), text)
    for noise in noises:
        scheduler, x = wan_scheduler(num_steps, shift), noise
        for timestep in scheduler.timesteps:
            velocity = reference.flow(x.double(), float(timestep), text).float()
            x = scheduler.step(velocity, timestep, x, return_dict=False)[0]
        reference.commit(x.double(), text)
        done.append(x)
    return torch.cat(done, dim=1).transpose(0, 1)
