"""From a configuration to an engine ready to run."""

from __future__ import annotations

from pathlib import Path

import torch

from pagedvid.cache.spec import CacheSpec
from pagedvid.config import CacheConfig, Config
from pagedvid.engine.engine import Engine
from pagedvid.engine.requests import EngineSettings
from pagedvid.errors import ConfigError
from pagedvid.geometry import RoleCodecs, Window
from pagedvid.models.base import ModelGeometry
from pagedvid.models.registry import load_model
from pagedvid.paged_kv_cache import PagedKVCache

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def role_codecs(cache: CacheConfig) -> RoleCodecs:
    """The codecs of all roles."""
    return RoleCodecs(history=cache.codec, sink=cache.sink_codec, newest=cache.newest_codec)


def cache_spec(config: Config, geometry: ModelGeometry) -> CacheSpec:
    """What the cache has to know of model and settings."""
    return CacheSpec(
        num_layers=geometry.num_layers,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        num_query_heads=geometry.num_query_heads,
        codecs=role_codecs(config.cache),
        correction=config.cache.correction,
        debug_checks=config.cache.debug_checks,
    )


def build_engine(config: Config) -> Engine:
    """Loads the model, allocates the pool, picks the backend. Raises ConfigError, CapacityError, BackendError."""
    if config.model.device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"model.device is {config.model.device!r}, but PyTorch sees no CUDA device here; use cpu")
    model = load_model(
        config.model.name,
        _path(config.model.weights),
        config.model.device,
        DTYPES[config.model.dtype],
        text_encoder=_path(config.model.text_encoder),
        vae=_path(config.model.vae),
    )
    cache = PagedKVCache(
        cache_spec(config, model.geometry),
        config.cache.memory,
        config.model.device,
        backend=config.attention.backend,
        scratch=config.attention.scratch,
    )
    window = Window(config.cache.sink_chunks, config.cache.recent_chunks, positions=model.positions)
    settings = EngineSettings(
        max_batch_tokens=config.engine.max_batch_tokens,
        policy=config.engine.policy,
        max_concurrent=None if config.engine.concurrent == "auto" else int(config.engine.concurrent),
        num_denoise_steps=config.engine.denoise_steps or model.default_denoise_steps,
    )
    return Engine(model, cache, window, settings)


def _path(written: str | None) -> Path | None:
    return None if written is None else Path(written)
