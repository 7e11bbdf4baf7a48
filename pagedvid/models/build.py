"""From a configuration to typed values (`resolve`), and from these to an engine ready to run (`build_engine`).

`resolve` is the one place where settings that were left open are decided.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pagedvid.budgets.spend import Spending
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.codecs.spec import block_frames
from pagedvid.config.sections import Config
from pagedvid.devices import read_device
from pagedvid.engine.engine import Engine
from pagedvid.engine.protocol import ModelGeometry, ModelSpec, VideoModel
from pagedvid.errors import ConfigError
from pagedvid.host_state import float32_modules, independent_of_host
from pagedvid.models.common.checkpoint_files import path_or_none
from pagedvid.models.registry import model_spec, model_tables
from pagedvid.models.storage import decide
from pagedvid.networks.captured import capture
from pagedvid.networks.compiled import compile_blocks, require_compiler
from pagedvid.paged_kv_cache import PagedKVCache


@dataclass(frozen=True)
class RunSpec:
    """What a configuration comes to; no weights are read and no memory is taken yet."""

    config: Config
    """As given, with `cache.codec`, `cache.correction` and the window decided."""
    model: ModelSpec
    cache: CacheSpec
    tables: Path | None
    """File of the tables that the codecs need; None: they need none, or there is none."""
    window: Window
    """As configured; where positions start, the loaded model says."""
    spending: Spending | None
    """How `cache.bits` was spent; None: all heads are stored alike."""


def resolve(config: Config) -> RunSpec:
    """Decides what was left open. Raises ConfigError for settings that contradict each other or the model."""
    model, tables = model_spec(config.model), tables_file(config)
    window = _window(config, model)
    cache = replace(config.cache, sink_chunks=window.sink_chunks, recent_chunks=window.recent_chunks)
    storage = decide(replace(config, cache=cache), model.geometry, tables, window)
    config = replace(config, cache=storage.cache)
    _check_denoise_steps(model, config.engine.denoise_steps, window)
    spec = _cache_spec(config, storage.codecs, model.geometry)
    return RunSpec(config, model, spec, tables if _needs_tables(spec) else None, window, storage.spending)


@independent_of_host
def build_engine(
    run: RunSpec,
    prompts: Sequence[str] = (),
    cache_type: Callable[..., PagedKVCache] = PagedKVCache,
    engine_type: Callable[..., Engine] = Engine,
) -> Engine:
    """Loads the model, lets it be compiled and recorded if asked to, allocates the pool, picks the backend.

    Raises ConfigError, CapacityError, BackendError.

    `prompts`: those known now. They are encoded before the model is loaded, so that the text encoder need not stay.
    `cache_type`: such as one that observes (calibration/observe.py). `engine_type`: such as one that leads others
    (engine/lockstep.py).
    """
    config = run.config
    if config.model.compile:
        require_compiler(read_device(config.model.device))
    model = load_model(run, prompts)
    if config.model.compile:
        compile_blocks(model.blocks)
    if config.model.cuda_graphs:
        capture(model.network, read_device(config.model.device))
    cache = cache_type(
        run.cache,
        config.cache.memory,
        config.model.device,
        backend=config.attention.backend,
        scratch=config.attention.scratch,
        history_dtype=config.attention.history_dtype,
        tables=run.tables,
    )
    return engine_type(
        model,
        cache,
        replace(run.window, positions=model.positions),
        max_batch_tokens=config.engine.max_batch_tokens,
        policy=config.engine.policy,
        max_concurrent=None if config.engine.concurrent == "auto" else int(config.engine.concurrent),
        num_denoise_steps=config.engine.denoise_steps,
        reproducible=config.engine.reproducible,
        host_memory=config.cache.host_memory or 0,
        live_admission=config.engine.live_admission,
    )


@independent_of_host
def load_model(run: RunSpec, prompts: Sequence[str] = ()) -> VideoModel:
    """The model alone, with `prompts` encoded. Raises ConfigError."""
    config = run.config.model
    for device in (config.device, config.device_of_text_encoder, config.device_of_vae):
        read_device(device)
    with float32_modules():
        return run.model.load(prompts)


def tables_file(config: Config) -> Path | None:
    """The file of klt tables: as set, or next to the weights; None: there is none. Raises ConfigError."""
    written = config.cache.tables
    if written is None:
        return model_tables(config.model.name, path_or_none(config.model.weights))
    if not Path(written).is_file():
        raise ConfigError(f"cache.tables: {written} is not a file; `pagedvid calibrate` makes one")
    return Path(written)


def _window(config: Config, model: ModelSpec) -> Window:
    """As configured, or what suits the model."""
    sinks, recent = config.cache.sink_chunks, config.cache.recent_chunks
    return Window(
        model.window.sink_chunks if sinks == "auto" else int(sinks),
        model.window.recent_chunks if recent == "auto" else int(recent),
    )


def _check_denoise_steps(model: ModelSpec, num_denoise_steps: int | None, window: Window) -> None:
    """Raises ConfigError for a number of denoise steps that the model cannot run."""
    model.schedule(1, None, window)  # raises what is wrong apart from the number of steps
    try:
        model.schedule(1, num_denoise_steps, window)
    except ConfigError as error:
        raise ConfigError(f"engine.denoise_steps: {error}") from error


def _cache_spec(config: Config, codecs: StreamCodecs, geometry: ModelGeometry) -> CacheSpec:
    cache = config.cache
    return CacheSpec(
        num_layers=geometry.num_layers,
        num_kv_heads=geometry.num_kv_heads,
        head_dim=geometry.head_dim,
        num_query_heads=geometry.num_query_heads,
        codecs=codecs,
        page_rows=None if cache.page_rows == "auto" else int(cache.page_rows),
        tokens_per_frame=geometry.tokens_per_frame,
        frames_per_block=block_frames(geometry.frames_per_chunk),
        correction=cache.correction,
        correction_unit=config.attention.correction_unit,
        debug_checks=cache.debug_checks,
    )


def _needs_tables(spec: CacheSpec) -> bool:
    return any(
        codec.needs_tables for chunk in spec.codecs.all() for codec in chunk.used(spec.num_layers, spec.num_kv_heads)
    )
