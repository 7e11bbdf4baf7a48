"""A cache that measures what each choice of storage costs each head, for a profile (budgets/profile.py).

Forwards that read chunks are sampled, the same ones in all layers; for each range, all chunks that it reads are stored
again in every rung, outside the pool, and the outputs compared (curves.py).

Axes: L layers, H KV heads, R rungs, W recent chunks of the window, n tokens of a chunk, D head_dim.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.step import Step
from pagedvid.budgets.profile import Profile
from pagedvid.cache.plan import StepPlan
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.cache.window import Window
from pagedvid.calibration.curves import CachedChunk, Reading, key_errors, value_errors, window_errors
from pagedvid.calibration.sampling import SAMPLED_QUERIES, spread_over_frames
from pagedvid.calibration.watch import Seen, WatchingStep
from pagedvid.codecs.base import Codec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.registry import LADDERS, read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.tables_file import KINDS, Calibration
from pagedvid.errors import ConfigError
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.tables import rotate

SHARE = 1 / 4
"""Share of the forwards that are sampled: at random, so that every noise level occurs, and the first with each length
of history."""


class ProfilingCache(PagedKVCache):
    """A `PagedKVCache` that measures errors without changing results. Use codecs with little loss, such as bf16.

    Give it to one video after the other, and take the curves after each.
    """

    def __init__(self, *args: Any, calibration: Calibration, **options: Any) -> None:
        """Takes the arguments of `PagedKVCache`, and what codecs need besides: the ladder is "klt" if the calibration
        has its tables, otherwise "int". Raises ConfigError if it is another model's."""
        super().__init__(*args, **options)
        self.ladder = "klt" if calibration.has_klt else "int"
        self.rungs = LADDERS[self.ladder]
        specs = [read_codec(rung) for rung in self.rungs]
        spec, shape = self.spec, self.shape
        self.page_rows = specs[1].page_rows
        page = PageFormat(spec.head_dim, self.page_rows, spec.tokens_per_frame, spec.frames_per_block)
        book, heads = CodecBook(page, spec.num_kv_heads, calibration), slice(0, spec.num_kv_heads)
        self.codecs: dict[tuple[str, int], list[Codec]] = {
            (kind, layer): [book.codec(each, kind, layer, heads) for each in specs]
            for kind in KINDS
            for layer in range(shape.num_layers)
        }
        self.keeps_mass = StreamCodecs(self.rungs[1]).correction == "measured"
        self.begin(seed=0)

    def begin(self, seed: int) -> None:
        """Forgets what was measured, before the next video. `seed`: of which forwards are sampled."""
        self._chance = random.Random(seed)
        self._seen_reads: set[int] = set()
        self._sums: list[dict[str, Tensor]] = [{} for _ in range(self.spec.num_layers)]
        self._counts = [0] * self.spec.num_layers
        self._window_counts: list[Tensor | int] = [0] * self.spec.num_layers

    def curves(self) -> tuple[Tensor, Tensor, Tensor]:
        """Mean errors since `begin`: keys and values float32 [L, H, R], windows [L, H, 2, W].

        Those of windows are means over forwards with enough chunks to leave one out; NaN where there were none.
        Raises ConfigError if a layer saw no forward that reads a chunk.
        """
        if not all(self._counts):
            raise ConfigError("no forward of the video read a stored chunk; profile videos of more than one chunk")
        counts: dict[str, Sequence[int | Tensor]] = {
            "keys": self._counts,
            "values": self._counts,
            "windows": self._window_counts,
        }
        keys, values, windows = (
            torch.stack([sums[name].cpu() / count for sums, count in zip(self._sums, counts[name], strict=True)])
            for name in (*KINDS, "windows")
        )
        return keys, values, windows

    def add(self, layer: int, reading: Reading, recent_chunks: int) -> None:
        """Measures one range in one layer, whose window has so many recent chunks."""
        windows, leaves_out = window_errors(reading, recent_chunks)
        errors = {
            "keys": key_errors(reading, self.codecs["keys", layer], keeps_mass=self.keeps_mass),
            "values": value_errors(reading, self.codecs["values", layer]),
            "windows": windows,
        }
        sums = self._sums[layer]
        for name, error in errors.items():
            sums[name] = sums[name] + error if name in sums else error
        self._counts[layer] += 1
        self._window_counts[layer] = self._window_counts[layer] + leaves_out.int()

    def _new_step(self, plan: StepPlan) -> Step:
        num_reads = max(len(range_.reads) for range_ in plan.ranges)
        is_new = num_reads not in self._seen_reads
        self._seen_reads.add(num_reads)
        is_sampled = self._chance.random() < SHARE or is_new
        return _ProfilingStep(plan, self) if num_reads and is_sampled else super()._new_step(plan)


class _ProfilingStep(WatchingStep):
    def __init__(self, plan: StepPlan, cache: ProfilingCache) -> None:
        super().__init__(plan, cache)
        self._cache = cache
        self._first = cache._chance.randrange(2**16)

    @override
    def see(self, layer: int, seen: Seen) -> None:
        range_ = seen.range_
        if not range_.reads:
            return
        chunks = [self._chunk(layer, seen, number) for number in range(len(range_.reads))]
        own = seen.angles(range_.first_token, range_.num_tokens)
        sampled = spread_over_frames(range_.num_tokens, self._spec.tokens_per_frame, SAMPLED_QUERIES, self._first)
        q_GHQD = rotate(seen.q_GHnD, *own)[:, :, sampled.start :: sampled.step]
        reading = Reading.of(q_GHQD, rotate(seen.k_HnD, *own), seen.v_HnD, chunks)
        self._cache.add(layer, reading, range_.stream.window.recent_chunks)

    def _chunk(self, layer: int, seen: Seen, number: int) -> CachedChunk:
        read, range_ = seen.range_.reads[number], seen.range_
        num_committed = range_.stream.history(range_.branch).num_committed
        k_HnD, v_HnD = self.stored(layer, read, seen.rope)
        angles = seen.angles(read.first_token, read.chunk.num_tokens)
        is_sink = read.chunk.index < range_.stream.window.sink_chunks
        return CachedChunk(k_HnD, v_HnD, angles, num_committed - 1 - read.chunk.index, is_sink)


def profile_from(
    cache: ProfilingCache, window: Window, prompts: Sequence[str], curves: Sequence[Sequence[Tensor]], chunk_tokens: int
) -> Profile:
    """The profile from the curves of each prompt's video; without windows if some were never full."""
    keys, values, windows = (torch.stack(each) for each in zip(*curves, strict=True))
    windows[..., 1, -1] = 0  # the whole window leaves out nothing
    if not window.sink_chunks:
        windows[..., 0, -1] = 0
    if bool(windows.isnan().any()):
        windows = windows[..., :0]
    sizes = cache.page_rows, chunk_tokens, window.sink_chunks, window.recent_chunks
    return Profile(cache.ladder, cache.rungs, *sizes, tuple(prompts), keys, values, windows)
