"""The walk model in a plain dense loop."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pagedvid.engine.schedule import Range
from pagedvid.models.walk.pipeline import WalkModel
from pagedvid.models.walk.rotary import FASTEST, SLOWEST
from pagedvid.models.walk.spec import VIEW_CELLS, levels_of
from tests.models.walk.untrained import NUM_STEPS


def rotated(x_THD: Tensor, places: list[list[int]]) -> Tensor:
    """Rotary embedding of the cells in view from `places`, one complex number per pair."""
    pairs = x_THD.shape[-1] // 4
    frequencies = torch.logspace(np.log10(FASTEST), np.log10(SLOWEST), pairs, dtype=torch.float64)
    cells = [(row + r, column + c) for row, column in places for r in range(VIEW_CELLS) for c in range(VIEW_CELLS)]
    angles = torch.stack([torch.cat([frequencies * row, frequencies * column]) for row, column in cells])
    first, second = x_THD.double().chunk(2, dim=-1)
    product = torch.complex(first, second) * torch.polar(torch.ones_like(angles), angles)[:, None]
    return torch.cat([product.real, product.imag], dim=-1).to(x_THD.dtype)


@torch.inference_mode()
def dense_latents(
    model: WalkModel,
    prompt: str,
    seed: int,
    num_chunks: int,
    kept: int,
    inputs: Mapping[str, Any] | None = None,
    num_given: int | None = None,
) -> Tensor:
    """Clean latents of all chunks of one video; history is the newest `kept` chunks, dense and exact. `num_given`: of
    the chunks that are not generated; None: one if the prompt names a map."""
    walk = model.prepare(prompt, inputs or {}, 2 * num_chunks)
    num_given = int(walk.map_seed is not None) if num_given is None else num_given
    places = walk.places(2 * num_chunks).tolist()
    history: list[dict[int, tuple[Tensor, Tensor]]] = []
    clean = []
    for chunk in range(num_chunks):
        own_places, stored = places[2 * chunk : 2 * chunk + 2], {}

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, *, commits: bool) -> Tensor:
            q, k = rotated(q, own_places), rotated(k, own_places)  # noqa: B023 - called within this turn of the loop
            stored[layer] = k, v  # noqa: B023
            seen = [] if commits else [each[layer] for each in history[-kept:]]
            keys, values = (torch.cat([*(pair[i] for pair in seen), own]) for i, own in enumerate((k, v)))
            return F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in (q, keys, values))).transpose(0, 1)

        def forward(latents: Tensor, level: float) -> Tensor:
            part = Range(range(2 * chunk, 2 * chunk + 2), level)  # noqa: B023
            return model.forward(latents, [part], [walk], lambda *args: attend(*args, commits=level == 0))

        latents = model.initial_latents(walk, seed, chunk)
        if chunk >= num_given:
            for level, lower in itertools.pairwise(levels_of(NUM_STEPS)):
                latents = model.advance(latents, {"cond": forward(latents, level)}, level, lower)
        clean.append(latents)
        forward(latents, 0.0)
        history.append(stored)
    return torch.cat(clean)
