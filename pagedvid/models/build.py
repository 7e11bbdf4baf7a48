"""From a configuration to an engine ready to run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.window import Window
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.page import block_frames
from pagedvid.config.sections import Config
from pagedvid.devices import read_device
from pagedvid.engine.engine import Engine
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.requests import EngineSettings
from pagedvid.errors import ConfigError
from pagedvid.host_state import float32_modules, independent_of_host
from pagedvid.models.choice import ModelChoice
from pagedvid.models.registry import load_model, model_schedule
from pagedvid.models.settle import settled, stream_codecs, tables_path
from pagedvid.paged_kv_cache import PagedKVCache

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def cache_spec(config: Config, geometry: ModelGeometry) -> CacheSpec:
    """What the cache has to know of model and settings. `cache.codec` is settled (models/settle.py)."""
    return CacheSpec(
        num_layers=geometry.num_layers,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        num_query_heads=geometry.num_query_heads,
        codecs=stream_codecs(config.cache),
        page_rows=None if config.cache.page_rows == "auto" else int(config.cache.page_rows),
        tokens_per_frame=geometry.tokens_per_frame,
        frames_per_block=block_frames(geometry.frames_per_chunk),
        correction=config.cache.correction,
        debug_checks=config.cache.debug_checks,
    )


def codec_book(spec: CacheSpec, tables: Path | None) -> CodecBook:
    """The codecs of a cache; the tables are read when one of its codecs needs them. Raises ConfigError."""
    used = {codec for chunk in spec.codecs.all() for codec in chunk.in_layers(spec.num_layers)}
    if tables is None or not any(codec.needs_tables for codec in used):
        return CodecBook(spec.shape.page, spec.num_kv_heads)
    from pagedvid.codecs.klt.file import load_calibration

    return CodecBook(spec.shape.page, spec.num_kv_heads, load_calibration(tables))


def model_choice(config: Config, prompts: Sequence[str] = ()) -> ModelChoice:
    """What the settings ask for besides the model's name."""
    model = config.model
    return ModelChoice(
        weights=_path(model.weights),
        text_encoder=_path(model.text_encoder),
        vae=_path(model.vae),
        height=model.height,
        width=model.width,
        ema=model.ema,
        prompts=tuple(prompts),
    )


def check_denoise_steps(config: Config, choice: ModelChoice) -> None:
    """Raises ConfigError for a number of denoise steps that the model cannot run; its weights are not read."""
    name, window = config.model.name, Window(config.cache.sink_chunks, config.cache.recent_chunks)
    model_schedule(name, choice, 1, None, window)  # what is wrong besides the number of steps is said first
    try:
        model_schedule(name, choice, 1, config.engine.denoise_steps, window)
    except ConfigError as error:
        raise ConfigError(f"engine.denoise_steps: {error}") from error


@independent_of_host
def build_engine(config: Config, prompts: Sequence[str] = (), cache_type: type[PagedKVCache] = PagedKVCache) -> Engine:
    """Loads the model, allocates the pool, picks the backend. Raises ConfigError, CapacityError, BackendError.

    `prompts`: those known now. They are encoded before the model is loaded, so that the text encoder need not stay.
    `cache_type`: such as one that observes (calibration/observe.py).
    """
    read_device(config.model.device)
    config = settled(config)
    choice = model_choice(config, prompts)
    check_denoise_steps(config, choice)
    with float32_modules():
        model = load_model(config.model.name, choice, config.model.device, DTYPES[config.model.dtype])
    spec = cache_spec(config, model.geometry)
    cache = cache_type(
        spec,
        config.cache.memory,
        config.model.device,
        backend=config.attention.backend,
        scratch=config.attention.scratch,
        book=codec_book(spec, tables_path(config)),
    )
    window = Window(config.cache.sink_chunks, config.cache.recent_chunks, positions=model.positions)
    settings = EngineSettings(
        max_batch_tokens=config.engine.max_batch_tokens,
        policy=config.engine.policy,
        max_concurrent=None if config.engine.concurrent == "auto" else int(config.engine.concurrent),
        num_denoise_steps=config.engine.denoise_steps or model.default_denoise_steps,
        reproducible=config.engine.reproducible,
    )
    return Engine(model, cache, window, settings)


def _path(written: str | None) -> Path | None:
    return None if written is None else Path(written)
