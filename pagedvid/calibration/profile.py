"""A cache that measures how much each way of storing chunks changes the attention output of each head, for a profile
(budgets/profile.py).

A random share of the forwards that read stored chunks is sampled, the same forwards in all layers. For each range, the
keys and values of all chunks that it reads are encoded and decoded by the codec of every rung, outside the pool, and
the attention outputs are compared (curves.py). Some denoise steps are run a second time with changed attention outputs,
to measure how much that changes the model's prediction (sensitivity.py).

Axes: L layers, H KV heads, G query heads of a KV head, R rungs, W recent chunks of the window, n tokens of a chunk, D
head_dim.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.step import Step
from pagedvid.budgets.profile import Profile
from pagedvid.cache.plan import RangePlan, StepPlan
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
"""Share of the forwards that are sampled, at random, so that all noise levels occur. The first forward of a video that
reads so many chunks is always sampled."""
SENSED_SHARE = 1 / 4
"""Share of the sampled denoise steps that are run a second time to measure sensitivities. The first of a video always
is."""
SENSED_RUNG = 2
"""Index of the rung whose errors are taken as typical."""
CURVES = ("keys", "values", "windows")
"""What errors are measured of: the codec of keys, the codec of values, and how many chunks a head sees."""


class OutputChange(NamedTuple):
    """How a typical way of storing chunks changes the attention output of one range."""

    range_: RangePlan
    change_GHnD: Tensor
    """float32."""


class ProfilingCache(PagedKVCache):
    """A `PagedKVCache` that measures errors without changing results. Use codecs with little loss, such as bf16.

    Generate one video after the other with it; call `begin` before and `curves` after each.
    """

    def __init__(self, *args: Any, calibration: Calibration, **options: Any) -> None:
        """Takes the arguments of `PagedKVCache`, and raises its errors.

        `calibration`: what the codecs of the rungs need. The ladder is "klt" if it has tables for klt codecs, otherwise
        "int". Raises ConfigError for the calibration of another model.
        """
        super().__init__(*args, **options)
        self.ladder = "klt" if calibration.has_klt else "int"
        self.rungs = LADDERS[self.ladder]
        specs = [read_codec(rung) for rung in self.rungs]
        spec, shape = self.spec, self.shape
        self.page_rows = specs[1].page_rows
        page = PageFormat(spec.head_dim, self.page_rows, spec.tokens_per_frame, spec.frames_per_block)
        book, heads = CodecBook(page, spec.num_kv_heads, calibration), tuple(range(spec.num_kv_heads))
        self.codecs: dict[tuple[str, int], list[Codec]] = {
            (kind, layer): [book.codec(each, kind, layer, heads) for each in specs]
            for kind in KINDS
            for layer in range(shape.num_layers)
        }
        self.keeps_mass = StreamCodecs(self.rungs[1]).correction == "measured"
        self.wants_changes = False
        """Whether `take_changes` is called after every forward."""
        self.begin(seed=0)

    def begin(self, seed: int) -> None:
        """Discards what was measured; to be called before each video. `seed`: of the random choice of forwards."""
        self._chance = random.Random(seed)
        self._seen_reads: set[int] = set()
        self._has_sensed = False
        self._sums: list[dict[str, Tensor]] = [{} for _ in range(self.spec.num_layers)]
        self._changes: dict[tuple[str, int], list[OutputChange]] = {}
        self._sensed = torch.zeros(2, len(CURVES), self.spec.num_layers, self.spec.num_kv_heads, dtype=torch.float64)
        self._is_watched = True
        self._counts = [0] * self.spec.num_layers
        self._window_counts: list[Tensor | int] = [0] * self.spec.num_layers

    def curves(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean squared changes of attention outputs since `begin`, and how much such changes matter.

        Returns the errors of keys stored in each rung, float32 [L, H, R]; of values, [L, H, R]; and of each window,
        without and with sinks, [L, H, 2, W]. The last are means over the forwards that read more chunks than the window
        keeps, NaN where there was none. The fourth, float64 [2, 3, L, H], holds the sums of squared changes of the
        prediction and of the output for each of CURVES, over the denoise steps that were run a second time.

        Raises ConfigError if no sampled forward read a stored chunk.
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
        return keys, values, windows, self._sensed

    def take_changes(self) -> dict[tuple[str, int], list[OutputChange]]:
        """The output changes, one of each range, by (one of CURVES, layer), whose effect on the prediction is to be
        measured by running the last forward again. They are returned once, and for few forwards: mostly it is empty."""
        changes, self._changes = self._changes, {}
        return changes

    @contextmanager
    def unwatched(self) -> Iterator[None]:
        """A context in which nothing is measured: for forwards that are run a second time."""
        self._is_watched = False
        try:
            yield
        finally:
            self._is_watched = True

    def add_sensitivity(self, kind: str, layer: int, head: int, prediction_error: float, output_error: float) -> None:
        """Adds the effect of one change of a head's output: the mean squared change of the model's prediction, and the
        squared change of the output, summed over channels and query heads, mean over queries. `kind`: one of CURVES."""
        errors = torch.tensor([prediction_error, output_error], dtype=torch.float64)
        self._sensed[:, CURVES.index(kind), layer, head] += errors

    def add(self, layer: int, reading: Reading, recent_chunks: int) -> None:
        """Measures one range in one layer. `recent_chunks`: W, those of its stream's window."""
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

    def add_changes(self, layer: int, range_: RangePlan, readings: Iterable[Reading]) -> None:
        """Computes how typical ways of storing chunks change the output of a whole range, for `take_changes`.

        `readings`: one for each KV head, with all queries of the range. They come one after the other, because all
        heads together would take much memory.
        """
        by_head = [self._typical_changes(layer, head, range_, each) for head, each in enumerate(readings)]
        for kind, changes in zip(CURVES, zip(*by_head, strict=True), strict=True):
            self._changes.setdefault((kind, layer), []).append(OutputChange(range_, torch.cat(changes, dim=1)))

    def _typical_changes(self, layer: int, head: int, range_: RangePlan, reading: Reading) -> list[Tensor]:
        """Changes of the output of one KV head, in the order of CURVES, float32 [G, 1, n, D] each."""
        keys, values = (self.codecs[kind, layer][SENSED_RUNG].of_heads((head,)) for kind in KINDS)
        newest = reading.within(max(1, range_.stream.window.recent_chunks // 2), keeps_sinks=True)
        typical = reading.with_keys(keys, keeps_mass=self.keeps_mass), reading.with_values(values), newest
        return [reading.change(partials) for partials in typical]

    def _new_step(self, plan: StepPlan) -> Step:
        num_reads = max(len(range_.reads) for range_ in plan.ranges)
        is_new = num_reads not in self._seen_reads
        self._seen_reads.add(num_reads)
        if not num_reads or (self._chance.random() >= SHARE and not is_new):
            return super()._new_step(plan)
        is_denoise = not plan.pending
        is_sensed = self.wants_changes and is_denoise and (self._chance.random() < SENSED_SHARE or not self._has_sensed)
        self._has_sensed = self._has_sensed or is_sensed
        return _ProfilingStep(plan, self, is_sensed)


class _ProfilingStep(WatchingStep):
    def __init__(self, plan: StepPlan, cache: ProfilingCache, is_sensed: bool) -> None:
        super().__init__(plan, cache)
        self._cache = cache
        self._is_sensed = is_sensed
        self._first = cache._chance.randrange(2**16)

    @override
    def see(self, layer: int, seen: Seen) -> None:
        range_ = seen.range_
        if not range_.reads or not self._cache._is_watched:
            return
        chunks = [self._chunk(layer, seen, number) for number in range(len(range_.reads))]
        own = seen.angles(range_.first_token, range_.num_tokens)
        sampled = spread_over_frames(range_.num_tokens, self._spec.tokens_per_frame, SAMPLED_QUERIES, self._first)
        q_GHnD, own_k_HnD = rotate(seen.q_GHnD, *own), rotate(seen.k_HnD, *own)
        reading = Reading.of(q_GHnD[:, :, sampled.start :: sampled.step], own_k_HnD, seen.v_HnD, chunks)
        self._cache.add(layer, reading, range_.stream.window.recent_chunks)
        if self._is_sensed:
            heads = [slice(head, head + 1) for head in range(len(own_k_HnD))]
            of_heads = (
                Reading.of(q_GHnD[:, head], own_k_HnD[head], seen.v_HnD[head], [each.of_heads(head) for each in chunks])
                for head in heads
            )
            self._cache.add_changes(layer, range_, of_heads)

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
    """The profile of several videos. `curves`: what `ProfilingCache.curves` returned for each of `prompts`.

    Errors of windows are left out if any is NaN, because some video had no more chunks than the window keeps. Errors of
    outputs are multiplied by the mean sensitivity of all videos, which makes them errors of the model's prediction. If
    no sensitivity was measured, because the host uses no `SensedModel`, errors of outputs are kept as they are, and
    those of all heads count alike.
    """
    keys, values, windows, sensed = (torch.stack(each) for each in zip(*curves, strict=True))
    of_predictions, of_outputs = sensed.sum(0)
    if bool(of_outputs.any()):
        weights = (of_predictions / of_outputs.clamp(min=torch.finfo(torch.float64).tiny)).float()
        keys, values = keys * weights[0, ..., None], values * weights[1, ..., None]
        windows = windows * weights[2, ..., None, None]
    windows[..., 1, -1] = 0  # the whole window leaves out nothing
    if not window.sink_chunks:
        windows[..., 0, -1] = 0
    if bool(windows.isnan().any()):
        windows = windows[..., :0]
    sizes = cache.page_rows, chunk_tokens, window.sink_chunks, window.recent_chunks
    return Profile(cache.ladder, cache.rungs, *sizes, tuple(prompts), keys, values, windows)
