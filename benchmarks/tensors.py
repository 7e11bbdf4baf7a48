"""Queries, keys and values to try codecs on: captured from the demo model, and drawn from families with known traits.

One `Sample` is one layer of one video: the chunks that a cache would hold, the queries of the commit passes that store
them, and the chunk denoised after them at several noise levels. Everything is before rotary embedding, half layout.

Axes: C cached chunks, L noise levels, H heads, T tokens of a chunk, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from pagedvid.calibration.statistics import Observation
from pagedvid.engine.schedule import Range
from pagedvid.models.demo.pipeline import DemoModel
from pagedvid.rotary.tables import rotate


@dataclass(frozen=True)
class Sample(Observation):
    """See the module docstring; all float32."""

    commit_q_CHTD: Tensor
    family: str
    name: str
    layer: int
    tokens_per_frame: int


def capture(model: DemoModel, prompt: str, seed: int, num_cached_chunks: int, num_steps: int = 8) -> list[Sample]:
    """The layers of one video of the demo model, its history unquantized. The first, a middle and the last denoise step
    of the chunk after the cached ones are kept."""
    condition, levels = model.encode_prompt(prompt), model.noise_levels(num_steps)
    watched = (0, num_steps // 2, num_steps - 1)
    history: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    steps: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    for chunk in range(num_cached_chunks + 1):
        latents = model.initial_noise(seed, chunk)
        for number, (level, next_level) in enumerate(pairwise(levels)):
            seen, prediction = _forward(model, latents, level, condition, history)
            if chunk == num_cached_chunks and number in watched:
                steps.append(seen)
            latents = model.advance(latents, {"cond": prediction}, level, next_level)
        if chunk < num_cached_chunks:
            history.append(_forward(model, latents, levels[-1], condition, history)[0])
    size = model.geometry.chunk_tokens
    tables = [model.rope.tables(chunk * size, size) for chunk in range(num_cached_chunks + 1)]
    cos, sin = (torch.stack([table[i] for table in tables]) for i in (0, 1))
    samples = []
    for layer in range(model.geometry.num_layers):
        stored_q, stored_k, stored_v = (torch.stack([chunk[layer][i] for chunk in history]) for i in range(3))
        q, k, v = (torch.stack([step[layer][i] for step in steps]) for i in range(3))
        tokens_per_frame = model.geometry.tokens_per_frame
        samples.append(Sample(stored_k, stored_v, q, k, v, cos, sin, stored_q, "demo", prompt, layer, tokens_per_frame))
    return samples


def _forward(
    model: DemoModel,
    latents: Tensor,
    level: float,
    condition: object,
    history: list[list[tuple[Tensor, Tensor, Tensor]]],
) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
    """One dense forward: (q, k, v) [H, T, D] by layer, and the prediction."""
    seen: list[tuple[Tensor, Tensor, Tensor]] = []
    size = model.geometry.chunk_tokens

    def attend(layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, /, **how: object) -> Tensor:
        own = tuple(x.float().transpose(0, 1).clone() for x in (q_THD, k_THD, v_THD))
        seen.append(own)  # type: ignore[arg-type]
        chunks = [*(chunk[layer] for chunk in history), own]
        keys = [rotate(chunk[1], *model.rope.tables(i * size, size)) for i, chunk in enumerate(chunks)]
        q_HTD = rotate(own[0], *model.rope.tables(len(history) * size, size))
        out_HTD = torch.nn.functional.scaled_dot_product_attention(
            q_HTD, torch.cat(keys, dim=1), torch.cat([chunk[2] for chunk in chunks], dim=1)
        )
        return out_HTD.transpose(0, 1).to(q_THD.dtype)

    with torch.no_grad():
        prediction = model.forward(latents, [Range(range(model.geometry.frames_per_chunk), level)], [condition], attend)
    return seen, prediction
