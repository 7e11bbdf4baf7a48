"""Wan networks of flashdreams with their history in pages. The only file that imports flashdreams.

    transformer = config.setup()                    # Wan21Transformer, Wan22Transformer, or a model that contains one
    rollouts = install(transformer, memory="8GiB")  # int2 history, measured correction
    ...                                             # generate and finalize as usual

flashdreams writes a chunk's keys and values into its cache in every forward, and those of the last forward,
`finalize_kv_cache`, remain. Here that forward is the commit pass, the only one that stores. Keys are stored before
rotary embedding and rotated by the rollout's own embedding (`rope_adapter`) when they are read, so self-attention does
not use flashdreams' rotary kernel. Its window counts the chunk being denoised, `Window.recent_chunks` does not:

    sink_size 1 chunk, window_size 3 chunks   =   Window(sink_chunks=1, recent_chunks=2)

flashdreams is optional (pip install "pagedvid[flashdreams]"). Written for version 0.1; its names are kept here.
Axes: L tokens of a chunk, n heads, d channels of a head.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn

from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.errors import ConfigError
from pagedvid.integrations.flashdreams_history import ChunkRope, PagedHistory, PagedLayer, release
from pagedvid.paged_kv_cache import PagedKVCache


def install(
    transformer: nn.Module, memory: int | str, *, codecs: StreamCodecs | None = None, correction: str = "measured"
) -> PagedRollouts:
    """Puts the history of every Wan network in `transformer` into one new pool of `memory` bytes (or "8GiB").

    Applies to rollouts opened from now on (`initialize_autoregressive_cache`); weights and their names do not change.
    Raises ConfigError if there is no Wan network, if networks differ in shape, and for compiled or captured networks
    and context parallelism, which cannot run on pages.
    """
    networks = _wan_networks(transformer)
    spec, *others = (_spec(network, codecs or StreamCodecs(), correction) for network in networks)
    if any(other != spec for other in others):
        raise ConfigError(
            "these networks differ in layers, heads or head_dim and cannot share a pool: install each one separately"
        )
    rollouts = PagedRollouts(PagedKVCache(spec, memory, next(networks[0].parameters()).device))
    for network in networks:
        rollouts.take_over(network)
    for module in transformer.modules():
        if hasattr(module, "finalize_kv_cache"):
            rollouts.commit_in(module)
        if any(getattr(module, "network", None) is network for network in networks):
            rollouts.find_rope_in(module)
    return rollouts


class PagedRollouts:
    """The cache of all rollouts, and which forwards are commit passes. `install` returns it."""

    def __init__(self, cache: PagedKVCache) -> None:
        self.cache = cache
        self._commit_passes = 0
        self._abandoned: list[list[Stream]] = []

    @contextmanager
    def commit_pass(self) -> Iterator[None]:
        """Makes every forward inside the block a commit pass, for hosts without `finalize_kv_cache`."""
        self._commit_passes += 1
        try:
            yield
        finally:
            self._commit_passes -= 1

    def release_dropped(self) -> None:
        """Frees the pages of rollouts that the host no longer refers to. Opening a rollout does this too."""
        while self._abandoned:
            release(self.cache, self._abandoned.pop())

    def open_history(self, layers: Sequence[PagedLayer]) -> None:
        """Gives the layers of a new rollout their history. Raises ConfigError, CapacityError."""
        self.release_dropped()
        history = PagedHistory(self.cache, layers[0])
        # A finalizer may run at any moment, so it only notes what to release.
        weakref.finalize(history, self._abandoned.append, history.streams)
        for layer in layers:
            layer.history = history

    def use_rope(self, network_cache: Any, embedding: Any) -> None:
        """Sets the rotary embedding of a rollout, for hosts without `initialize_autoregressive_cache`."""
        layer: PagedLayer = network_cache[0].self_attn
        layer.history.rope = ChunkRope(embedding, layer.positions, layer.chunk_size)

    def take_over(self, network: Any) -> None:
        """Replaces a network's self-attention and opens a step around each of its forwards."""
        for number, block in enumerate(network.blocks):
            block.self_attn = PagedSelfAttention(block.self_attn, number)
        initialize, forward = network.initialize_cache, network.forward
        parameters = inspect.signature(forward)

        @wraps(initialize)
        def initialize_cache(*args: Any, **kwargs: Any) -> Any:
            rollout = initialize(*args, **kwargs)
            self.open_history([block_cache.self_attn for block_cache in rollout.block_caches])
            return rollout

        @wraps(forward)
        def forward_in_a_step(*args: Any, **kwargs: Any) -> Tensor:
            history = parameters.bind(*args, **kwargs).arguments["cache"][0].self_attn.history
            with history.step(commit=self._commit_passes > 0):
                return forward(*args, **kwargs)

        network.initialize_cache, network.forward = initialize_cache, forward_in_a_step

    def commit_in(self, transformer: Any) -> None:
        """Makes the forwards of a transformer's `finalize_kv_cache` commit passes."""
        finalize: Callable[..., None] = transformer.finalize_kv_cache

        @wraps(finalize)
        def finalize_kv_cache(*args: Any, **kwargs: Any) -> None:
            with self.commit_pass():
                finalize(*args, **kwargs)

        transformer.finalize_kv_cache = finalize_kv_cache

    def find_rope_in(self, transformer: Any) -> None:
        """Takes the rotary embedding of each rollout from what `initialize_autoregressive_cache` returns."""
        initialize = transformer.initialize_autoregressive_cache

        @wraps(initialize)
        def initialize_autoregressive_cache(*args: Any, **kwargs: Any) -> Any:
            rollout = initialize(*args, **kwargs)
            for network_cache in (rollout.network_cache, rollout.network_cache_uncond):
                if network_cache is not None:
                    self.use_rope(network_cache, rollout.rope_adapter)
            return rollout

        transformer.initialize_autoregressive_cache = initialize_autoregressive_cache


class PagedSelfAttention(nn.Module):
    """A Wan block's self-attention on pages, with the same weights under the same names."""

    def __init__(self, attention: Any, layer: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = attention.q, attention.k, attention.v, attention.o
        self.norm_q, self.norm_k = attention.norm_q, attention.norm_k
        self._heads = (-1, attention.n_heads, attention.head_dim)
        self._positions = "absolute" if attention.apply_rope_before_kvcache else "window"
        self._layer = layer

    def initialize_cache(
        self,
        batch_size: int,
        chunk_size: int,
        window_size: int,
        sink_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> PagedLayer:
        """As flashdreams' `SelfAttention.initialize_cache`, sizes in tokens. `open_history` adds the history later."""
        return PagedLayer(batch_size, chunk_size, window_size, sink_size, self._positions)

    def forward(self, x: Tensor, kv_cache: PagedLayer, rope_freqs: Tensor) -> Tensor:
        """x [..., L, n * d] -> the same shape. `rope_freqs` is not used: `PagedHistory` has the rotary embedding."""
        q, k = (norm(project(x)) for norm, project in ((self.norm_q, self.q), (self.norm_k, self.k)))
        v = self.v(x)  # under autocast in its dtype, while the norms of q and k return float32
        q, k, v = (each.reshape(self._heads).to(v.dtype) for each in (q, k, v))
        return self.o(kv_cache.history.attend(self._layer, q, k, v).reshape(x.shape))


def _wan_networks(transformer: nn.Module) -> list[Any]:
    """Every Wan network inside. Raises ConfigError if there is none, or one that cannot run on pages."""
    try:
        from flashdreams.recipes.wan.transformer.impl.network import WanDiTNetwork
    except ImportError as error:
        raise ConfigError(
            f"rollouts of flashdreams need the library flashdreams ({error}): pip install 'pagedvid[flashdreams]'"
        ) from error
    networks = [module for module in transformer.modules() if isinstance(module, WanDiTNetwork)]
    if not networks:
        raise ConfigError(f"{type(transformer).__name__} contains no WanDiTNetwork; give a Wan transformer, set up")
    for module in transformer.modules():
        config = getattr(module, "config", None)
        captured = [name for name in ("compile_network", "use_cuda_graph") if getattr(config, name, False)]
        if captured:
            raise ConfigError(
                f"{type(module).__name__} was set up with {' and '.join(captured)}; the pages that are read change "
                "from chunk to chunk and cannot be captured: set it up with both off"
            )
    for network in networks:
        attention = network.blocks[0].self_attn
        if isinstance(attention, PagedSelfAttention):
            raise ConfigError("this network already runs on pages; set up a new one for another pool")
        if attention.is_context_parallel_enabled():
            raise ConfigError("context parallelism splits a chunk over devices; pages need it on one")
    return networks


def _spec(network: Any, codecs: StreamCodecs, correction: str) -> CacheSpec:
    return CacheSpec(
        num_layers=len(network.blocks),
        num_kv_heads=network.num_heads,
        head_dim=network.dim // network.num_heads,
        codecs=codecs,
        correction=correction,
    )
