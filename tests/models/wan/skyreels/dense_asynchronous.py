"""The published asynchronous loop over diffusers' own model, block by block, with dense keys and values.

Rows of timesteps and windows of blocks are the library's (`generate_timestep_matrix`). Blocks in flight are computed
anew in every row. A clean one is computed in the first row that has it so; its keys, before rotary embedding, and its
values are kept. Nothing of pagedvid is used.

Axes: C latent channels, F frames of a block, R and S rows and columns.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from diffusers import SkyReelsV2DiffusionForcingPipeline
from torch import Tensor

from tests.models.wan.skyreels.dense_window import turned

BRANCHES = ("cond", "uncond")
Texts = dict[str, Tensor]
"""Rows of cross-attention by branch, [1, L, width]."""


def published_rows(num_blocks: int, num_given: int, timesteps: Tensor, window_blocks: int, ar_step: int):
    """Row by row: each block's place among its steps (0: not begun, 1 to n: in flight, then clean), and the blocks of
    the window as (first, stop).

    The published program knows no more given blocks than the window holds: those before them are left out of its call.
    """
    left_out = max(0, num_given - window_blocks)
    make = SkyReelsV2DiffusionForcingPipeline.generate_timestep_matrix
    _, places, moves, windows = make(
        None, num_blocks - left_out, timesteps, window_blocks, ar_step, num_given - left_out, 1
    )
    in_flight = (places > 0) & (places <= len(timesteps))
    assert torch.equal(moves, in_flight)
    clean = [len(timesteps) + 1] * left_out
    for row, (first, stop) in zip(places.tolist(), windows, strict=True):
        yield clean + row, (first + left_out, min(stop + left_out, num_blocks))


class BlockProcessor:
    """Self-attention of one layer."""

    def __init__(self, video: DenseAsynchronous) -> None:
        self.video = video
        self.made: dict[str, dict[int, tuple[Tensor, Tensor]]] = {branch: {} for branch in BRANCHES}
        """The newest keys and values of every block."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        video, x = self.video, hidden_states[0]
        q, k, v = attn.norm_q(attn.to_q(x)), attn.norm_k(attn.to_k(x)), attn.to_v(x)
        q, k, v = (y.unflatten(1, (attn.heads, -1)) for y in (q, k, v))
        made = self.made[video.branch]
        made[video.block] = (k, v)
        keys, values = (torch.cat([made[seen][i] for seen in (*video.seen, video.block)]) for i in (0, 1))
        q, keys = video.turned(q, first=len(keys) - len(q)), video.turned(keys, first=0)
        out = F.scaled_dot_product_attention(*(y.transpose(0, 1)[None] for y in (q, keys, values)))
        return attn.to_out[0](out[0].transpose(0, 1).flatten(1)).unsqueeze(0)


class DenseAsynchronous:
    """One video. Besides the window the first `sinks` blocks are seen; positions start at 0 with the first one seen."""

    def __init__(self, transformer, scheduler, num_steps: int, guidance_scale: float, sinks: int = 0) -> None:
        scheduler.set_timesteps(num_steps)
        self.transformer, self.scheduler, self.guidance_scale, self.sinks = (
            transformer, scheduler, guidance_scale, sinks,
        )  # fmt: skip
        self.branch, self.block, self.seen = "cond", 0, ()
        for block in transformer.blocks:
            block.attn1.set_processor(BlockProcessor(self))

    @torch.no_grad()
    def rollout(
        self,
        noises: Sequence[Tensor],
        ar_step: int,
        window_blocks: int,
        texts: Callable[[int], Texts],
        given: Sequence[Tensor] = (),
        given_timestep: int = 0,
        again: Sequence[int] = (),
    ) -> Tensor:
        """Latents [frames, C, R, S] of the blocks after the given ones from each one's noise [C, F, R, S].

        `window_blocks`: without sinks. `texts`: of a row, by its number from 0. `again`: rows before which what is kept
        is computed again, under the texts of that row.
        """
        x = [*given, *noises]
        self.size = x[0].shape[2:]
        kept = list(range(len(given)))
        for block in kept:
            window = self._window(block - window_blocks + 1, block + 1)
            self._flow(block, x[block], given_timestep, texts(0), window)
        schedulers = [copy.deepcopy(self.scheduler) for _ in x]
        timesteps = [None, *self.scheduler.timesteps.tolist(), 0]
        rows = published_rows(len(x), len(given), self.scheduler.timesteps, window_blocks, ar_step)
        for row, (places, (first, stop)) in enumerate(rows):
            window = [block for block in self._window(first, stop) if places[block] > 0]
            kept = [block for block in kept if block in window]
            if row in again:
                for block in kept:
                    self._flow(block, x[block], 0, texts(row), kept)
            flows = {}
            for block in window:
                if block not in kept:
                    flows[block] = self._flow(block, x[block], int(timesteps[places[block]]), texts(row), window)
            for block, flow in flows.items():
                if timesteps[places[block]] == 0:
                    kept.append(block)
                else:
                    x[block] = schedulers[block].step(flow, timesteps[places[block]], x[block], return_dict=False)[0]
        return torch.cat(x[len(given) :], dim=1).transpose(0, 1)

    def turned(self, x_nHD: Tensor, first: int) -> Tensor:
        return turned(self.transformer.rope, self.size, x_nHD, first)

    def _window(self, first: int, stop: int) -> list[int]:
        return [block for block in range(stop) if block < self.sinks or block >= first]

    def _flow(self, block: int, x: Tensor, timestep: int, texts: Texts, window: Sequence[int]) -> Tensor:
        self.block, self.seen = block, tuple(other for other in window if other < block)
        flows = {}
        for self.branch in BRANCHES:
            out = self.transformer(x[None], torch.tensor([timestep]), texts[self.branch], return_dict=False)
            flows[self.branch] = out[0][0]
        return flows["uncond"] + self.guidance_scale * (flows["cond"] - flows["uncond"])
