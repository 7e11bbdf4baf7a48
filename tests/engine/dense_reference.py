"""The plainest loop that can be right: one video, dense keys and values, nothing ever dropped, float64 attention.

Which chunks a step sees and where rotary embedding places them is retold here from their definition.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.engine.protocol import VideoModel
from pagedvid.engine.schedule import Range

Layers = dict[int, tuple[Tensor, Tensor]]
"""Keys (before rotary embedding) and values [n, H, D] of each layer."""


def as_bf16(x: Tensor) -> Tensor:
    return x.bfloat16().to(x.dtype)


def as_given(x: Tensor) -> Tensor:
    return x


@dataclass
class DenseBranch:
    """`Attend` of one branch of one video. `as_stored` is what storing does to keys and values."""

    model: VideoModel
    window: Window
    as_stored: Callable[[Tensor], Tensor]
    committed: list[Layers] = field(default_factory=list)
    current: Layers = field(default_factory=dict)

    def __call__(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        self.current[layer] = (k_THD, v_THD)
        seen, positions = self._seen()
        pairs = [self.committed[index][layer] for index in seen] + [(k_THD, v_THD)]
        group = q_THD.shape[1] // k_THD.shape[1]
        keys = torch.cat([self._turn(k, position) for (k, _), position in zip(pairs, positions, strict=True)])
        values = torch.cat([v for _, v in pairs]).double().repeat_interleave(group, dim=1)
        queries = self._turn(q_THD, positions[-1])
        scores = torch.einsum("thd,nhd->htn", queries, keys.repeat_interleave(group, dim=1)) * q_THD.shape[-1] ** -0.5
        return torch.einsum("htn,nhd->thd", scores.softmax(dim=-1), values).to(q_THD.dtype)

    def commit(self) -> None:
        self.committed.append({layer: (self.as_stored(k), self.as_stored(v)) for layer, (k, v) in self.current.items()})

    def _seen(self) -> tuple[list[int], list[int]]:
        """Visible chunks, and the rotary position of each and of the current chunk."""
        now, size = len(self.committed), self.model.geometry.chunk_tokens
        sinks, recents = self.window.sink_chunks, self.window.recent_chunks
        seen = [index for index in range(now) if index < sinks or index >= now - recents]
        places = range(len(seen) + 1) if self.window.positions == "window" else [*seen, now]
        return seen, [size * place for place in places]

    def _turn(self, x_nHD: Tensor, position: int) -> Tensor:
        """Half layout: channels c and c + D/2 as one complex number, turned by its angle."""
        assert self.model.rope is not None
        cos, sin = self.model.rope.tables(position, len(x_nHD))
        first, second = x_nHD.double().chunk(2, dim=-1)
        turned = torch.complex(first, second) * torch.complex(cos, sin).unsqueeze(1)
        return torch.cat([turned.real, turned.imag], dim=-1)


def dense_video(
    model: VideoModel,
    prompt: str,
    seed: int,
    num_chunks: int,
    num_denoise_steps: int,
    window: Window,
    as_stored: Callable[[Tensor], Tensor] = as_given,
    given: Sequence[Tensor] = (),
) -> Tensor:
    """Clean latents of all chunks, [num_chunks * chunk_tokens, C], which follow the `given` ones."""
    condition, frames = model.encode_prompt(prompt), range(model.geometry.frames_per_chunk)
    branches = {name: DenseBranch(model, window, as_stored) for name in model.geometry.branches}
    chunks = []

    def commit(latents: Tensor) -> None:
        for name, branch in branches.items():
            model.forward(latents, [Range(frames, 0.0, name)], [condition], branch)
            branch.commit()

    for latents in given:
        commit(latents)
    for index in range(len(given), len(given) + num_chunks):
        latents = model.initial_noise(seed, index)
        for level, next_level in itertools.pairwise(model.noise_levels(num_denoise_steps)):
            predictions = {
                name: model.forward(latents, [Range(frames, level, name)], [condition], branch)
                for name, branch in branches.items()
            }
            latents = model.advance(latents, predictions, level, next_level)
        commit(latents)
        chunks.append(latents)
    return torch.cat(chunks)
