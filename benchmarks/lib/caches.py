"""Caches by name: pagedvid's codecs and presets, and the published quantizers.

A published quantizer runs in the very same engine (peers/codec.py) and counts bits as its paper does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from lib.schemes import paged
from pagedvid.attention.step import Step
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream_sizes import stream_bytes, window_bits_per_value
from pagedvid.cache.window import Window
from pagedvid.capacity.card_files import config_folder
from pagedvid.config.file import load_config
from pagedvid.config.sections import CacheConfig, Config, ModelConfig
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.models.build import RunSpec, resolve
from pagedvid.models.registry import model_tables
from pagedvid.paged_kv_cache import PagedKVCache
from peers.catalogue import Peer, peers
from peers.codec import FORMAT, PeerBook

PRESETS = {path.stem: path for path in sorted(config_folder("presets").glob("*.yaml"))}
DEFAULT = "default"
"""The storage of a run without settings."""
OWN = "own"
"""The correction that a preset chooses for itself."""


@dataclass(frozen=True)
class Case:
    """One way to keep the history of a video."""

    storage: str
    """A codec, KEYS/VALUES, a preset, "default", or a peer's name."""
    correction: str = "off"
    """Correction mode of the cache; "own": what the preset says."""
    factor: float | None = None
    """If given, the correction is the formula's b times this, whatever `correction` says."""

    def __str__(self) -> str:
        return f"{self.storage} {self.correction if self.factor is None else f'b x {self.factor:g}'}"


REFERENCE = Case("bf16")


class FactorCache(PagedKVCache):
    """Multiplies b by one factor everywhere, in place of the measured alpha."""

    factor = 1.0

    @contextmanager
    def step(self, ranges: Sequence[QueryRange]) -> Iterator[Step]:
        with super().step(ranges) as step:
            yield step
        for range_ in ranges:
            for chunk in range_.stream.history(range_.branch).chunks.values():
                if chunk.alpha is not None:
                    chunk.alpha.fill_(self.factor)


@dataclass(frozen=True)
class Caches:
    """Makes the caches of one model."""

    geometry: ModelGeometry
    window: Window
    weights: Path | None = None
    """Folder of the model, which may hold klt tables; None: the shipped one."""

    def peers(self) -> dict[str, Peer]:
        """The published quantizers by name. Their k-means clusters serve one chunk."""
        return {peer.name: peer for peer in peers(self.geometry.chunk_tokens, self.geometry.head_dim)}

    @property
    def has_tables(self) -> bool:
        """Whether the model has klt tables."""
        return model_tables("demo", self.weights) is not None

    def settings(self, case: Case) -> CacheConfig:
        """Complete settings of a case that is no peer. Raises ConfigError."""
        return self._run(case).config.cache

    def spec(self, case: Case) -> CacheSpec:
        """What the cache of a case that is no peer is made for. Raises ConfigError."""
        return self._run(case).cache

    def new(self, case: Case, num_videos: int) -> PagedKVCache:
        """An empty cache with room for all videos. Raises ConfigError for an unknown storage."""
        peer = self.peers().get(case.storage)
        run = self._run(replace(case, storage=FORMAT) if peer else case)
        spec = run.cache
        memory = num_videos * self.stream_bytes(spec)
        if peer is not None:
            return PagedKVCache(spec, memory, book=PeerBook(peer, spec.shape.page, spec.num_kv_heads))
        if case.factor is None:
            return PagedKVCache(spec, memory, tables=run.tables)
        cache = FactorCache(spec, memory, tables=run.tables)
        cache.factor = case.factor
        return cache

    def stream_bytes(self, spec: CacheSpec) -> int:
        """Most bytes that a stream ever holds."""
        return stream_bytes(spec.shape, self.window, spec.codecs, self.geometry.chunk_tokens)

    def bits(self, cache: PagedKVCache) -> float:
        """Stored bits per element of a full window: pages with their padding, and what the correction stores.

        The cache must have stored something.
        """
        num_tokens, shape, codecs = self.geometry.chunk_tokens, cache.spec.shape, cache.spec.codecs
        if isinstance(cache.book, PeerBook):
            return cache.book.bits + 8 * shape.correction_bytes(codecs.steady) / shape.num_tables / (
                2 * num_tokens * shape.head_dim
            )
        return window_bits_per_value(shape, self.window, codecs, num_tokens)

    def _run(self, case: Case) -> RunSpec:
        model = ModelConfig(weights=None if self.weights is None else str(self.weights))
        if case.storage in PRESETS or case.storage == DEFAULT:
            cache = load_config(PRESETS[case.storage]).cache if case.storage in PRESETS else CacheConfig()
        else:
            rows = paged(case.storage, self.geometry.head_dim).rows
            cache = CacheConfig(codec=case.storage, page_rows=rows)
        correction = case.correction if case.factor is None else "measured"
        if correction != OWN:
            cache = replace(cache, correction=correction)
        return resolve(Config(model=model, cache=cache))
