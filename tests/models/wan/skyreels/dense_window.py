"""A block-by-block rollout over diffusers' own model with dense keys and values of every finished block, of which the
first and the newest ones are seen, placed next to each other from frame 0 on. Nothing of pagedvid is used.

Angles come from the transformer's own tables (`rope`), as they are for a call of that many frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


class DenseProcessor:
    """Self-attention of one layer: keys are kept as they are before rotary embedding."""

    def __init__(self, rollout: DenseWindow) -> None:
        self.rollout = rollout
        self.kept: dict[str, list[tuple[Tensor, Tensor]]] = {"cond": [], "uncond": []}

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        rollout, x = self.rollout, hidden_states[0]
        q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x)
        q, k, v = (y.unflatten(1, (attn.heads, -1)) for y in (q, k, v))
        kept = self.kept[rollout.branch]
        seen = [*(kept[i] for i in rollout.visible(len(kept))), (k, v)]
        keys, values = (torch.cat([pair[i] for pair in seen]) for i in (0, 1))
        q, keys = rollout.turned(q, first=len(keys) - len(q)), rollout.turned(keys, first=0)
        out = F.scaled_dot_product_attention(*(y.transpose(0, 1)[None] for y in (q, keys, values)))
        if rollout.is_clean_pass:
            kept.append((k, v))
        return attn.to_out[0](out[0].transpose(0, 1).flatten(1)).unsqueeze(0)


def turned(rope, size: Sequence[int], x_nHD: Tensor, first: int) -> Tensor:
    """Turned by the angles of tokens `first` on: neighbours (2c, 2c + 1). `size`: rows and columns of latents."""
    cos, sin = (y[0, first : first + len(x_nHD)] for y in rope(torch.empty(1, 1, rope.max_seq_len, *size)))
    a, b = x_nHD.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = cos[..., ::2], sin[..., ::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


class DenseWindow:
    """One video; `sinks` first and `recents` newest blocks are seen, besides the current one."""

    def __init__(self, transformer, sinks: int, recents: int) -> None:
        self.transformer = transformer
        self.sinks, self.recents = sinks, recents
        self.branch, self.is_clean_pass = "cond", False
        for block in transformer.blocks:
            block.attn1.set_processor(DenseProcessor(self))

    def visible(self, num_finished: int) -> list[int]:
        """Which finished blocks are seen."""
        return [i for i in range(num_finished) if i < self.sinks or i >= num_finished - self.recents]

    def turned(self, x_nHD: Tensor, first: int) -> Tensor:
        return turned(self.transformer.rope, self.size, x_nHD, first)

    @torch.no_grad()
    def rollout(
        self,
        noises: list[Tensor],
        scheduler,
        num_steps: int,
        texts: dict[str, Tensor],
        guidance_scale: float,
        given: Sequence[Tensor] = (),
        given_timestep: int = 0,
    ) -> Tensor:
        """Latents [frames, C, R, S] from each block's noise [C, frames, R, S], after the given blocks."""
        done = []
        for x in given:
            self._keep(x, given_timestep, texts)
        for x in noises:
            self.size = x.shape[2:]
            scheduler.set_timesteps(num_steps)
            for timestep in scheduler.timesteps:
                cond, uncond = (self._flow(x, int(timestep), texts, name) for name in ("cond", "uncond"))
                x = scheduler.step(uncond + guidance_scale * (cond - uncond), timestep, x, return_dict=False)[0]
            self._keep(x, 0, texts)
            done.append(x)
        return torch.cat(done, dim=1).transpose(0, 1)

    def _keep(self, x: Tensor, timestep: int, texts: dict[str, Tensor]) -> None:
        self.size, self.is_clean_pass = x.shape[2:], True
        for name in ("cond", "uncond"):
            self._flow(x, timestep, texts, name)
        self.is_clean_pass = False

    def _flow(self, x: Tensor, timestep: int, texts: dict[str, Tensor], branch: str) -> Tensor:
        self.branch = branch
        return self.transformer(x[None], torch.tensor([timestep]), texts[branch], return_dict=False)[0][0]
