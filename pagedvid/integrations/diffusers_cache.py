"""A paged cache for diffusers' Wan transformers, switched on as the library's own caches are.

    paged = enable_paged_cache(transformer, PagedCacheConfig(memory="8GiB", frames_per_chunk=3))
    with transformer.cache_context("cond"):             # its pipelines open these around every call
        transformer(latents, timestep, text)            # a denoise step: sees the chunks committed in this context
    with paged.commit_pass(), transformer.cache_context("cond"):
        transformer(clean, zero, text)                  # stores the chunk; the next forward is of the next one
    paged.reset()                                       # the next video; pipelines do it at their end
    disable_paged_cache(transformer)

Each cache context keeps videos of its own, one a batch row. `integrations.diffusers.install` is the same mechanism for
hosts that have a cache and its streams in their own hands; it also lets videos of different lengths share a forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from pagedvid.arguments import instance_of, whole_number
from pagedvid.cache.spec import STREAM_CODECS, CacheSpec
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.errors import ConfigError, StateError
from pagedvid.integrations.diffusers import require_supported, transformer_rotary
from pagedvid.integrations.diffusers_library import import_diffusers
from pagedvid.paged_kv_cache import PagedKVCache

if TYPE_CHECKING:  # derives from the library's classes
    from pagedvid.integrations.diffusers_cache_hook import PagedCache

_HOOK = "pagedvid_paged_cache"
_EXAMPLE = 'PagedCacheConfig(memory="8GiB", frames_per_chunk=3)'


@dataclass(frozen=True)
class PagedCacheConfig:
    """Settings of a paged cache. Raises ConfigError."""

    memory: int | str
    """Bytes of all pages, or text such as "8GiB"."""
    frames_per_chunk: int
    """Most latent frames of one forward. A chunk may have fewer."""
    window: Window = field(default_factory=Window)
    """Which committed chunks a forward sees."""
    codecs: StreamCodecs = field(default_factory=StreamCodecs)
    correction: str | None = None
    """As in `CacheSpec`; None: what suits the codecs."""
    tables: Path | str | None = None
    """The file that klt codecs need; these need the two sizes below as well."""
    tokens_per_frame: int = 1
    frames_per_block: int = 1
    device: torch.device | str | None = None
    """Of the pages; None: that of the transformer's weights. With offloaded weights, the device that computes."""

    def __post_init__(self) -> None:
        number = whole_number("frames_per_chunk", self.frames_per_chunk, 1, error=ConfigError)
        object.__setattr__(self, "frames_per_chunk", number)
        instance_of(Window, "window", self.window, "Window(sink_chunks=1, recent_chunks=4)", ConfigError)
        instance_of(StreamCodecs, "codecs", self.codecs, STREAM_CODECS, ConfigError)


def enable_paged_cache(transformer: Any, config: PagedCacheConfig) -> PagedCache:
    """Gives a diffusers transformer a new paged cache; its forwards are steps over that cache from now on.

    The first forward of a cache context opens a stream for each batch row, and raises CapacityError when their peak
    does not fit. Raises ConfigError, with nothing changed, for transformers that are not supported, are in training
    mode, are split over devices or have a cache already.
    """
    library = import_diffusers("a paged cache")
    instance_of(PagedCacheConfig, "config", config, _EXAMPLE, ConfigError)
    require_supported(transformer)
    _require_free(transformer)
    transformer_rotary(transformer.rope, rows=1, columns=1)  # refuses tables that it cannot continue
    from pagedvid.integrations.diffusers_cache_hook import PagedCache

    paged = PagedCache(_new_cache(transformer, config), config.window, config.frames_per_chunk)
    library.HookRegistry.check_if_exists_or_initialize(transformer).register_hook(paged, _HOOK)
    transformer._cache_config = config  # makes the library's enable_cache refuse a second cache
    return paged


def disable_paged_cache(transformer: Any) -> None:
    """Releases all videos and gives the transformer its former attention back. Raises StateError without a cache."""
    library = import_diffusers("a paged cache")
    require_supported(transformer)
    registry = library.HookRegistry.check_if_exists_or_initialize(transformer)
    if registry.get_hook(_HOOK) is None:
        raise StateError("this transformer has no paged cache; enable_paged_cache gives it one")
    registry.remove_hook(_HOOK, recurse=False)
    transformer._cache_config = None


def _require_free(transformer: Any) -> None:
    if transformer.training:
        raise ConfigError("this transformer is in training mode, but no gradient passes through pages: call eval()")
    given = transformer._cache_config
    if isinstance(given, PagedCacheConfig):
        raise ConfigError("this transformer has a paged cache already; call disable_paged_cache to give it another one")
    registries = (getattr(module, "_diffusers_hook", None) for module in transformer.modules())
    hooks = [item for registry in registries if registry is not None for item in registry.hooks.items()]
    others = sorted({name for name, hook in hooks if hook._is_stateful})
    if given is not None or others:
        named = type(given).__name__ if given is not None else ", ".join(others)
        raise ConfigError(
            f"another cache is enabled ({named}); it skips layers or forwards, and a commit pass needs all of them: "
            "call transformer.disable_cache() first"
        )
    if transformer._parallel_config is not None:
        raise ConfigError(
            "this transformer is split over devices by diffusers, and pages need all tokens and heads on one: load it "
            "without a parallel configuration"
        )


def _new_cache(transformer: Any, config: PagedCacheConfig) -> PagedKVCache:
    spec = CacheSpec(
        num_layers=len(transformer.blocks),
        num_kv_heads=transformer.config.num_attention_heads,
        head_dim=transformer.config.attention_head_dim,
        codecs=config.codecs,
        tokens_per_frame=config.tokens_per_frame,
        frames_per_block=config.frames_per_block,
        correction=config.correction or config.codecs.correction,
    )
    device = transformer.patch_embedding.weight.device if config.device is None else config.device
    return PagedKVCache(spec, config.memory, device, tables=config.tables)
