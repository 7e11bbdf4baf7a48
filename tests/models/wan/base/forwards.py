"""Commit passes and one denoise step of a model over a cache, without the engine: the same inputs for every codec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.engine.schedule import Range
from pagedvid.paged_kv_cache import PagedKVCache
from tests.models.wan.base.tiny import embeddings

Layers = list[tuple[Tensor, Tensor, Tensor]]
"""q, k, v of a pass by layer."""


@dataclass
class Forwarded:
    """What a denoise step gave, and the queries, keys and values of each pass by layer."""

    velocity: Tensor
    attended: list[Tensor] = field(default_factory=list)
    """By layer, [T, H, D]."""
    passes: list[Layers] = field(default_factory=list)
    """Of every commit pass, then of the denoise step."""


def relative_error(x: Tensor, exact: Tensor) -> float:
    return float((x - exact).norm() / exact.norm())


def cache_for(model, codec: str, correction: str) -> PagedKVCache:
    geometry = model.geometry
    spec = CacheSpec(
        num_layers=geometry.num_layers,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        codecs=StreamCodecs(codec),
        correction=correction,
    )
    return PagedKVCache(spec, "16MiB")


@torch.no_grad()
def denoise_after_commits(model, codec: str, correction: str = "off", num_commits: int = 4) -> Forwarded:
    """Chunks are noise, which is as good as anything for random weights."""
    condition = model.prepare("", {"embeddings": embeddings(1)}, 0)
    cache, size = cache_for(model, codec, correction), model.geometry.chunk_tokens
    stream = cache.open(Window(0, num_commits), size)
    result = Forwarded(torch.empty(0))
    for number in range(num_commits + 1):
        is_commit = number < num_commits
        part = Range(range(model.geometry.frames_per_chunk), 0.0 if is_commit else 0.9, commits=is_commit)
        latents = model.initial_latents(condition, 0, number)
        with cache.commit([stream]) if is_commit else cache.denoise([stream]) as step:
            seen: Layers = []
            outs: list[Tensor] = []

            def attend(layer, q, k, v, step=step, seen=seen, outs=outs):
                seen.append((q, k, v))
                outs.append(step.attend(layer, q, k, v, model.rope))
                return outs[-1]

            result.velocity = model.forward(latents, [part], [condition], attend)
        result.passes.append(seen)
        result.attended = outs
    return result


@torch.no_grad()
def cached_mass(model, codec: str, correction: str, passes: Sequence[Layers]) -> Tensor:
    """Share of attention that stored keys get in the last of the `passes`, by layer: the output when stored values are
    1 and current ones 0."""
    *commits, last = passes
    cache = cache_for(model, codec, correction)
    stream = cache.open(Window(0, len(commits)), model.geometry.chunk_tokens)
    for layers in commits:
        with cache.commit([stream]) as step:
            for layer, (q, k, v) in enumerate(layers):
                step.attend(layer, q, k, torch.ones_like(v), model.rope)
    with cache.denoise([stream]) as step:
        attend = partial(step.attend, rope=model.rope)
        masses = [attend(layer, q, k, torch.zeros_like(v)) for layer, (q, k, v) in enumerate(last)]
    return torch.stack([mass.mean() for mass in masses])
