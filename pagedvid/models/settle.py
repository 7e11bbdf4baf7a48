"""From settings to codecs: what `auto` means for a model, and where the tables of klt codecs are."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.config.sections import CacheConfig, Config
from pagedvid.errors import ConfigError

logger = logging.getLogger(__name__)

CALIBRATED_CODEC = "klt1.5/klt3"
"""2.25 bits per value: those of values count more (benchmarks/fidelity.py)."""
PLAIN_CODEC = "int2"


def settled(config: Config) -> Config:
    """The settings with every `auto` of the cache decided. Raises ConfigError for tables that do not exist."""
    cache, tables = config.cache, tables_path(config)
    if cache.codec == "auto":
        codec, why = (CALIBRATED_CODEC, "has") if tables else (PLAIN_CODEC, "has no")
        logger.info("codec: %s (the model %s klt tables)", codec, why)
        cache = replace(cache, codec=codec)
    if cache.correction == "auto":
        cache = replace(cache, correction=stream_codecs(cache).correction)
    return replace(config, cache=cache)


def tables_path(config: Config) -> Path | None:
    """Where the tables of klt codecs are: as set, or next to the weights; None: nowhere. Raises ConfigError."""
    cache, model = config.cache, config.model
    if cache.tables is None:
        from pagedvid.models.registry import model_tables  # which imports PyTorch

        return model_tables(model.name, None if model.weights is None else Path(model.weights))
    if not Path(cache.tables).is_file():
        raise ConfigError(f"cache.tables: {cache.tables} is not a file; `pagedvid calibrate` makes one")
    return Path(cache.tables)


def stream_codecs(cache: CacheConfig) -> StreamCodecs:
    """The codecs of all roles. `cache.codec` is settled."""
    return StreamCodecs(cache.codec, sink=cache.sink_codec, newest=cache.newest_codec, layers=cache.layer_codecs)
