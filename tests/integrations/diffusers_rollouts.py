"""Forwards of tiny diffusers transformers with a paged cache, chunk by chunk, the same for every test."""

from __future__ import annotations

from contextlib import nullcontext

import torch

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.integrations.diffusers_cache import PagedCacheConfig
from tests.models.wan.base.tiny import TEXT_WIDTH

FRAMES, FRAME_TOKENS = 3, 15
NUM_CHUNKS = 6
TIMES = (900, 400, 0)
"""Of a chunk's forwards; the last one is its commit pass."""
EXACT = {"codecs": StreamCodecs("fp32"), "window": Window(1, 2)}
TEXTS = {"cond": 1, "uncond": 2}
"""Cache contexts, and seeds of what they are conditioned on."""


def config(**changes):
    return PagedCacheConfig(**{"memory": "16MiB", "frames_per_chunk": FRAMES, **EXACT, **changes})


def noise(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def chunk_of(number, num_videos=1, num_frames=FRAMES):
    return noise(100 + number, num_videos, 4, num_frames, 6, 10)


def text_of(context, num_videos=1):
    return noise(TEXTS[context], num_videos, 6, TEXT_WIDTH)


@torch.no_grad()
def forward(transformer, latents, time, context="cond"):
    times = torch.full((len(latents),), time)
    return transformer(latents, times, text_of(context, len(latents)), return_dict=False)[0]


def denoised(transformer, latents, context="cond", time=900):
    with transformer.cache_context(context):
        return forward(transformer, latents, time, context)


def committed(transformer, paged, latents, context="cond"):
    with paged.commit_pass():
        return denoised(transformer, latents, context, time=0)


def hook_rollout(transformer, paged, num_videos=1, contexts=("cond",), num_chunks=NUM_CHUNKS):
    """Predictions of every forward of noise chunks, which are as good as anything for random weights."""
    outs = []
    for number in range(num_chunks):
        for time in TIMES:
            with paged.commit_pass() if time == 0 else nullcontext():
                latents = chunk_of(number, num_videos)
                outs += [denoised(transformer, latents, context, time) for context in contexts]
    return outs
