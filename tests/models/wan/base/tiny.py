"""Transformers of diffusers at toy size, with random weights, and what it takes to run them.

15 tokens in a frame, 45 in a chunk: no multiple of any page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import diffusers
import torch

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import RequestFailure, VideoRequest
from pagedvid.paged_kv_cache import PagedKVCache

ROWS, COLUMNS, FRAMES_PER_CHUNK = 6, 10, 3
"""Of the latent grid; tokens are patches of 2 x 2."""
SIZE = {"latent_rows": ROWS, "latent_columns": COLUMNS, "frames_per_chunk": FRAMES_PER_CHUNK, "text_tokens": 6}
TEXT_WIDTH, NUM_CHANNELS = 12, 4
CONFIG = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": NUM_CHANNELS,
    "out_channels": NUM_CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 16,
    "ffn_dim": 48,
    "num_layers": 2,
    "rope_max_seq_len": 64,
}


def tiny_transformer(class_name, seed=0, **changes):
    """A transformer with contrast in its attention: of random weights alone it would be nearly even."""
    torch.manual_seed(seed)
    transformer = getattr(diffusers, class_name)(**{**CONFIG, **changes}).eval()
    with torch.no_grad():
        for block in transformer.blocks:
            for gain in (block.attn1.norm_q.weight, block.attn1.norm_k.weight):
                gain.copy_(1 + torch.rand(len(gain)))
    return transformer


def embeddings(seed, branches=("cond",)):
    """What a request brings in place of a prompt; fewer rows than the model takes."""
    names = {"cond": "prompt_embeds", "uncond": "negative_prompt_embeds"}
    generator = torch.Generator().manual_seed(seed)
    return {names[branch]: torch.randn(4, TEXT_WIDTH, generator=generator) for branch in branches}


def padded(rows):
    """As cross-attention reads them, with a batch axis."""
    return torch.cat([rows, torch.zeros(SIZE["text_tokens"] - len(rows), TEXT_WIDTH)]).unsqueeze(0)


def engine_of(model, codec="fp32", *, correction="off", max_batch_tokens=10_000, policy="fcfs", shard=None, **spec):
    geometry = model.geometry
    cache = PagedKVCache(
        CacheSpec(
            num_layers=geometry.num_layers,
            num_kv_heads=geometry.num_kv_heads,
            head_dim=geometry.head_dim,
            codecs=StreamCodecs(codec),
            correction=correction,
            debug_checks=True,
            **spec,
        ),
        "64MiB",
        shard=shard,
    )
    window = Window(1, 4, positions=model.positions)
    return Engine(model, cache, window, max_batch_tokens=max_batch_tokens, policy=policy)


def generate(
    engine: Engine, videos: Mapping[str, Mapping[str, torch.Tensor]], num_frames: Sequence[int], first_seed: int = 0
) -> dict[str, torch.Tensor]:
    """Latents [frames, C, R, S] of videos that run together, by id; `videos` gives each its embeddings."""
    for number, (id, rows) in enumerate(videos.items()):
        engine.submit(VideoRequest(id, "", num_frames[number], first_seed + number, {"embeddings": rows}))
    outputs = list(engine.run())
    assert [output for output in outputs if isinstance(output, RequestFailure)] == []
    return {id: torch.cat([torch.from_numpy(o.frames) for o in outputs if o.request_id == id]) for id in videos}
