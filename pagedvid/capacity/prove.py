"""Tests a prediction: a real pool, streams until admission refuses one, chunks through the real encoder.

All streams commit in the same step, so that they reach their peak together. They store the same chunk of random keys
and values. Nothing is attended to, because reading takes no pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from pagedvid.attention.commit_correction import Writing
from pagedvid.attention.measure import MEASURED_QUERIES, sampled_offsets
from pagedvid.attention.rotation import Readers, Rotation
from pagedvid.attention.store import LayerStore
from pagedvid.cache.manager import CacheManager
from pagedvid.cache.plan import QueryRange, RangePlan
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.cards import StreamSize
from pagedvid.capacity.sizing import Answer, Question, answers
from pagedvid.capacity.tensor_bytes import available_bytes, live_bytes, peak_extra_bytes, warm_up
from pagedvid.capacity.workspace import BF16_BYTES, commit_bytes
from pagedvid.codecs.assignment import KINDS
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.heads import index_among, index_of, query_heads
from pagedvid.devices import read_device
from pagedvid.errors import CapacityError, ConfigError
from pagedvid.rotary.grid_rotary import GridRotary, theta_frequencies
from pagedvid.units import format_bytes

PEAK_TOLERANCES = {"cpu": 0.002, "cuda": 0.02}
"""Relative tolerances of the peak by type of device, and on CUDA of the resident bytes; all other numbers must agree
exactly. On CUDA the allocator rounds up, and kernels need other temporaries than the operations that are counted."""
MAX_COMMITS = 512
"""Most commits per stream; a longer window would keep the machine busy for hours."""


@dataclass(frozen=True)
class Check:
    """One number, predicted and measured."""

    what: str
    predicted: int
    measured: int
    tolerance: float = 0.0

    @property
    def difference(self) -> float:
        """Measured minus predicted, relative to the prediction."""
        return (self.measured - self.predicted) / self.predicted

    @property
    def agrees(self) -> bool:
        """Whether both are equal within the tolerance."""
        return abs(self.measured - self.predicted) <= self.tolerance * self.predicted


@dataclass(frozen=True)
class Proof:
    """What was built, and whether it agrees with the prediction."""

    question: Question
    name: str
    device: str
    num_layers: int
    """Layers that were built."""
    num_commits: int
    full_bytes: int
    """Predicted bytes of the pool with all layers."""
    checks: tuple[Check, ...]
    seconds: float
    tolerance: float
    """Relative tolerance of the peak."""

    @property
    def agrees(self) -> bool:
        """Whether every check agrees."""
        return all(check.agrees for check in self.checks)


def prove(
    question: Question,
    name: str,
    codecs: StreamCodecs,
    *,
    layer_fraction: float = 1.0,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Proof:
    """Builds a pool, fills it and measures.

    `layer_fraction`: the share of the layers to build; the number of streams stays that of the whole model. Raises
    CapacityError when the pool does not fit on this machine, ConfigError for a device that does not exist.
    """
    target = read_device(device)
    if target.type not in PEAK_TOLERANCES:
        raise ConfigError(f"device is {device!r}, which has no memory of its own to measure; write cpu, cuda or cuda:N")
    (full,) = answers(question, {name: codecs})
    num_layers = max(1, round(question.card.num_layers * layer_fraction))
    size = replace(question, card=replace(question.card, num_layers=num_layers)).size.on_pages_for(codecs)
    pool_pages = full.pool_pages * size.pages(codecs) // full.stream_pages  # holds as many streams as the full pool
    pool_bytes = full.pool_bytes // full.pool_pages * pool_pages
    num_commits = size.max_commits or size.window.max_chunks + 2
    if num_commits > MAX_COMMITS:
        raise ConfigError(
            f"--prove with {num_commits} commits per stream would take too long; the most is {MAX_COMMITS}: give a "
            "shorter --window"
        )
    _require_room(target, pool_bytes + _transient_bytes(size, codecs))
    started = time.perf_counter()
    run = _Run(size, codecs, pool_bytes, target)
    run.fill(num_commits, progress)
    checks = _checks(run, full, pool_pages, pool_bytes, num_commits)
    run.release()
    seconds = time.perf_counter() - started
    tolerance = PEAK_TOLERANCES[target.type]
    return Proof(question, name, str(target), num_layers, num_commits, full.pool_bytes, checks, seconds, tolerance)


def _checks(run: _Run, full: Answer, pool_pages: int, pool_bytes: int, num_commits: int) -> tuple[Check, ...]:
    pool, num_streams = run.cache.pool, full.num_streams
    resident_bytes = pool_bytes + _factor_bytes(run, full, num_commits, pending=False)
    peak_bytes = pool_bytes + _factor_bytes(run, full, num_commits, pending=True)
    peak_bytes += _transient_bytes(run.size, run.codecs)
    peak_tolerance = PEAK_TOLERANCES[run.device.type]
    resident_tolerance = peak_tolerance if run.device.type == "cuda" else 0.0
    return (
        Check("pages of the pool", pool_pages, pool.num_pages),
        Check("bytes of the pool", pool_bytes, pool.records.nbytes),
        Check("streams admitted", num_streams, len(run.streams)),
        Check("pages at the peak", num_streams * run.size.pages(run.codecs), pool.peak_used_pages),
        Check("resident bytes", resident_bytes, run.resident_bytes, resident_tolerance),
        Check("peak bytes", peak_bytes, run.peak_bytes, peak_tolerance),
    )


def _factor_bytes(run: _Run, full: Answer, num_commits: int, *, pending: bool) -> int:
    """Bytes that the correction keeps for all live chunks, and with `pending` for those being stored; on the CPU."""
    if run.device.type != "cpu":
        return 0
    window, codecs = run.size.window, run.codecs
    last = num_commits - 1
    if pending:
        kept = [codecs.stored(j, last - 1 - j, window) for j in window.live(last)]
        kept.append(codecs.stored(last, 0, window))
        if last > 0 and codecs.recodes(last - 1, window):
            kept.append(codecs.stored(last - 1, 1, window))
    else:
        kept = [codecs.stored(j, last - j, window) for j in window.live(num_commits)]
    per_branch = sum(run.spec.shape.correction_bytes(chunk) for chunk in kept)
    return per_branch * run.size.num_branches * full.num_streams


class _Run:
    """A pool full of streams."""

    def __init__(self, size: StreamSize, codecs: StreamCodecs, pool_bytes: int, device: torch.device) -> None:
        self.size, self.codecs, self.device = size, codecs, device
        shape = size.shape
        book = CodecBook(shape.page, shape.num_kv_heads)
        book.check(codecs.all(), shape.num_layers)
        warm_up(device)
        _make_constants(book, codecs, size, device)
        # Its angles do not matter. It is made before bytes are counted and keeps no tables, so that it does not count.
        frequencies = theta_frequencies(shape.head_dim).to(device, torch.float32)
        self._rope = GridRotary.of_sequence(frequencies, "half", num_cached=0)
        self._before = live_bytes(device)
        self.spec = size.cache_spec(codecs)
        self.cache = CacheManager(self.spec, pool_bytes, device)
        self.store = LayerStore(self.cache.pool, self.spec, book, uses_kernels=device.type == "cuda")
        self.branches = tuple(f"branch{number}" for number in range(size.num_branches))
        self.streams = self._open_all()
        self.resident_bytes = self.peak_bytes = 0

    def _open_all(self) -> list[Stream]:
        streams: list[Stream] = []
        while True:
            try:
                stream = self.cache.open(
                    self.size.window, self.size.chunk_tokens, branches=self.branches, max_chunks=self.size.max_commits
                )
            except CapacityError:
                return streams
            streams.append(stream)

    def fill(self, num_commits: int, progress: Callable[[int, int], None]) -> None:
        """Commits chunk after chunk in all streams, and measures during the very last write."""
        self._commit_all(num_commits, progress)
        self.resident_bytes = live_bytes(self.device) - self._before
        self.cache.check()

    def _commit_all(self, num_commits: int, progress: Callable[[int, int], None]) -> None:
        inputs = self._inputs()
        for number in range(1, num_commits + 1):
            ranges = [QueryRange(stream, branch, commit=True) for stream in self.streams for branch in self.branches]
            with self.cache.transaction(ranges) as plan:
                *others, last = (partial(self._write, range_, inputs) for range_ in plan.ranges)
                for write in others:
                    write()
                if number < num_commits:
                    last()
                else:  # all pages are taken, and the temporaries of one range are as large as those of any other
                    held = live_bytes(self.device) - self._before
                    self.peak_bytes = held + peak_extra_bytes(self.device, last)
            progress(number, num_commits)

    def _write(self, range_: RangePlan, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        q, k, v = inputs
        rope = self.store.ropes.checked(self._rope)
        rotation = Rotation(rope, False, stored_by=rope)
        for pending in range_.writes:
            own_tokens = sampled_offsets(range_.num_tokens, self.device) if pending.source is None else None
            readers = Readers(q, q, range_.first_token, own_tokens)
            for layer in range(self.size.shape.num_layers):
                self.store.write(layer, [Writing(pending, readers, k, v)], rotation)

    def _inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled queries, keys and values of one layer of one chunk."""
        generator = torch.Generator(self.device).manual_seed(0)

        def random(num_tokens: int, num_heads: int) -> Tensor:
            shape = (num_tokens, num_heads, self.size.shape.head_dim)
            return torch.randn(shape, generator=generator, dtype=torch.bfloat16, device=self.device)

        num_tokens, num_kv_heads = self.size.chunk_tokens, self.size.shape.num_kv_heads
        q = random(min(num_tokens, MEASURED_QUERIES), self.size.num_query_heads)
        return q, random(num_tokens, num_kv_heads), random(num_tokens, num_kv_heads)

    def release(self) -> None:
        """Releases all streams; raises IntegrityError unless every page comes back."""
        for stream in self.streams:
            self.cache.release(stream)
        self.cache.check()


def _make_constants(book: CodecBook, codecs: StreamCodecs, size: StreamSize, device: torch.device) -> None:
    """Uses every codec and every index of heads once, so that what is kept for the whole process is not counted as a
    part of the cache."""
    shape = size.shape
    for spec in {spec for chunk in codecs.all() for spec in chunk.used(shape.num_layers, shape.num_kv_heads)}:
        codec = book.codec(spec, "keys", 0, tuple(range(shape.num_kv_heads)))
        records = codec.encode(torch.zeros(shape.num_kv_heads, 1, shape.head_dim, dtype=torch.float32, device=device))
        room = torch.empty(
            shape.num_kv_heads, spec.padded_tokens(shape.page, 1), shape.head_dim, dtype=torch.float32, device=device
        )
        codec.decode(records, 1, room)
    group = size.num_query_heads // shape.num_kv_heads
    for chunk, layer in product(codecs.all(), range(shape.num_layers)):
        kept = tuple(head for head in range(shape.num_kv_heads) if chunk.at(layer, head) is not None)
        for heads in (heads for kind in KINDS for heads, _ in chunk.groups(kind, layer, kept)):
            index_among(heads, kept, device)
            index_of(heads, device)
            index_of(query_heads(heads, group), device)


def _transient_bytes(size: StreamSize, codecs: StreamCodecs) -> int:
    """Bytes of `_Run._inputs` and, with the layers that are built, of a commit's temporaries."""
    num_queries = min(size.chunk_tokens, MEASURED_QUERIES) * size.num_query_heads
    inputs = BF16_BYTES * size.shape.head_dim * (num_queries + 2 * size.chunk_tokens * size.shape.num_kv_heads)
    return inputs + commit_bytes(size, codecs, measured=codecs.correction == "measured", has_rope=True)


def _require_room(device: torch.device, num_bytes: int) -> None:
    available = available_bytes(device)
    if available is not None and num_bytes > available:
        raise CapacityError(
            f"the proof would allocate {format_bytes(num_bytes)} on {device}, where {format_bytes(available)} are "
            "free; give a smaller --memory, or --scale to build only a fraction of the layers"
        )
