"""A paged, quantized KV cache and batching engine for autoregressive video diffusion."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagedvid.cache.plan import QueryRange
    from pagedvid.cache.spec import CacheSpec
    from pagedvid.cache.stats import CacheStats
    from pagedvid.cache.stream import Stream
    from pagedvid.cache.stream_codecs import StreamCodecs
    from pagedvid.cache.window import Window
    from pagedvid.errors import (
        BackendError,
        CapacityError,
        ConfigError,
        GivenFramesError,
        IntegrityError,
        ModelError,
        NonFiniteError,
        OverloadError,
        PagedvidError,
        PromptError,
        RankError,
        ShapeError,
        StartTimeError,
        StateError,
        WorkerError,
    )
    from pagedvid.handles import Compilable
    from pagedvid.paged_kv_cache import PagedKVCache
    from pagedvid.rotary.grid_rotary import GridRotary

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CacheSpec",
    "CacheStats",
    "CapacityError",
    "Compilable",
    "ConfigError",
    "GivenFramesError",
    "GridRotary",
    "IntegrityError",
    "ModelError",
    "NonFiniteError",
    "OverloadError",
    "PagedKVCache",
    "PagedvidError",
    "PromptError",
    "QueryRange",
    "RankError",
    "ShapeError",
    "StartTimeError",
    "StateError",
    "Stream",
    "StreamCodecs",
    "Window",
    "WorkerError",
    "__version__",
]

_HOMES = {
    "CacheSpec": "pagedvid.cache.spec",
    "CacheStats": "pagedvid.cache.stats",
    "Compilable": "pagedvid.handles",
    "GridRotary": "pagedvid.rotary.grid_rotary",
    "PagedKVCache": "pagedvid.paged_kv_cache",
    "QueryRange": "pagedvid.cache.plan",
    "Stream": "pagedvid.cache.stream",
    "StreamCodecs": "pagedvid.cache.stream_codecs",
    "Window": "pagedvid.cache.window",
    **{name: "pagedvid.errors" for name in __all__ if name.endswith("Error")},
}


def __getattr__(name: str) -> object:
    """Public names are imported when first used: `pagedvid --help` must not wait for PyTorch."""
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'pagedvid' has no attribute {name!r}")
