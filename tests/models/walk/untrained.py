"""A small walk model with random weights, and engines for it."""

from __future__ import annotations

import torch

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.engine.engine import Engine
from pagedvid.models.demo.spec import TransformerConfig
from pagedvid.models.walk.network import Transformer
from pagedvid.models.walk.pipeline import WalkModel
from pagedvid.paged_kv_cache import PagedKVCache

CONFIG = TransformerConfig(width=128, num_heads=2, num_layers=2)
NUM_STEPS = 2


def random_network() -> Transformer:
    """Random weights in every layer, those that training finds at 0 included."""
    torch.manual_seed(0)
    network = Transformer(CONFIG)
    for name, parameter in network.named_parameters():
        if "modulation" in name or "patch_out" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return network


def engine_of(model: WalkModel, codec: str, window: Window, **settings: object) -> Engine:
    geometry = model.geometry
    spec = CacheSpec(
        geometry.num_layers,
        geometry.num_kv_heads,
        geometry.head_dim,
        codecs=StreamCodecs(codec),
        tokens_per_frame=64,
        debug_checks=True,
    )
    return Engine(model, PagedKVCache(spec, "16MiB"), window, num_denoise_steps=NUM_STEPS, **settings)
