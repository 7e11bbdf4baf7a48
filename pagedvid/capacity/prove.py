"""The prediction put to the test: a real pool, streams until admission refuses, chunks through the real encoder.

All streams commit in the same step, so that every one of them reaches its peak at the same moment. Keys and values are
random, one chunk's worth for all; nothing is attended, because reading needs no pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from pagedvid.attention.measure import MEASURED_QUERIES, sampled_offsets
from pagedvid.attention.rotation import Readers
from pagedvid.attention.store import LayerStore, Writing
from pagedvid.cache.manager import CacheManager
from pagedvid.cache.plan import QueryRange, RangePlan
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.history import StreamSize
from pagedvid.capacity.measure import available_bytes, live_bytes, peak_extra_bytes, warm_up
from pagedvid.capacity.sizing import Answer, Question, answers
from pagedvid.capacity.workspace import BF16_BYTES
from pagedvid.codecs.book import CodecBook
from pagedvid.errors import CapacityError, ConfigError
from pagedvid.rotary.grid_rotary import GridRotary, theta_frequencies
from pagedvid.shown import shown
from pagedvid.units import format_bytes

PEAK_TOLERANCE = 0.02
MAX_COMMITS = 512
"""Commits per stream; a longer window would keep the machine busy for hours."""


@dataclass(frozen=True)
class Check:
    """One number, predicted and measured."""

    what: str
    predicted: int
    measured: int
    tolerance: float = 0.0

    @property
    def difference(self) -> float:
        """Relative to the prediction."""
        return (self.measured - self.predicted) / self.predicted

    @property
    def agrees(self) -> bool:
        """Exactly, or within the tolerance."""
        return abs(self.measured - self.predicted) <= self.tolerance * self.predicted


@dataclass(frozen=True)
class Proof:
    """What was built and how well it agrees."""

    question: Question
    name: str
    device: str
    num_layers: int
    """Layers that were really built."""
    num_commits: int
    full_bytes: int
    """The pool with all layers."""
    checks: tuple[Check, ...]
    seconds: float
    tolerance: float = PEAK_TOLERANCE

    @property
    def agrees(self) -> bool:
        """Whether every check does."""
        return all(check.agrees for check in self.checks)


def prove(
    question: Question,
    name: str,
    codecs: StreamCodecs,
    *,
    scale: float = 1.0,
    device: str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Proof:
    """Builds, fills and measures. `scale`: fraction of the layers; the number of streams stays that of the whole model.

    Raises CapacityError when the pool does not fit on this machine, ConfigError for a device that is not there.
    """
    target = _device(device)
    (full,) = answers(question, {name: codecs})
    num_layers = max(1, round(question.card.num_layers * scale))
    size = replace(question, card=replace(question.card, num_layers=num_layers)).size.on_pages_for(codecs)
    pool_pages = full.pool_pages * size.pages(codecs) // full.stream_pages  # holds as many streams as the whole pool
    pool_bytes = full.pool_bytes // full.pool_pages * pool_pages
    num_commits = size.max_commits or size.window.max_chunks + 2
    if num_commits > MAX_COMMITS:
        raise ConfigError(f"--prove with {num_commits} commits per stream would take too long; at most {MAX_COMMITS}")
    inputs_bytes = _inputs_bytes(size)
    _require_room(target, pool_bytes + inputs_bytes + full.commit_bytes)
    started = time.perf_counter()
    run = _Run(size, codecs, pool_bytes, target)
    run.fill(num_commits, progress)
    checks = (
        Check("pages of the pool", pool_pages, run.cache.pool.num_pages),
        Check("bytes of the pool", pool_bytes, run.cache.pool.records.nbytes),
        Check("streams admitted", full.num_streams, len(run.streams)),
        Check("pages at the peak", full.num_streams * size.pages(codecs), run.cache.pool.peak_used_pages),
        _resident_check(run, full, pool_bytes, num_commits),
        Check(
            "peak bytes",
            pool_bytes + _factor_bytes(run, full, num_commits, pending=True) + inputs_bytes + full.commit_bytes,
            run.peak_bytes,
            PEAK_TOLERANCE,
        ),
    )
    run.release()
    seconds = time.perf_counter() - started
    return Proof(question, name, str(target), num_layers, num_commits, full.pool_bytes, checks, seconds)


def _resident_check(run: _Run, full: Answer, pool_bytes: int, num_commits: int) -> Check:
    predicted = pool_bytes + _factor_bytes(run, full, num_commits, pending=False)
    return Check("resident bytes", predicted, run.resident_bytes, PEAK_TOLERANCE if run.device.type == "cuda" else 0.0)


def _factor_bytes(run: _Run, full: Answer, num_commits: int, *, pending: bool) -> int:
    """Correction factors of all live chunks (and of those being stored); they are kept on the CPU."""
    if run.device.type != "cpu":
        return 0
    window, codecs = run.size.window, run.codecs
    last = num_commits - 1
    if pending:
        kept = [codecs.at_commit(j, window) if j == last - 1 else codecs.final(j, window) for j in window.live(last)]
        kept.append(codecs.at_commit(last, window))
        if last > 0 and codecs.recodes(last - 1, window):
            kept.append(codecs.final(last - 1, window))
    else:
        live = window.live(num_commits)
        kept = [codecs.at_commit(j, window) if j == last else codecs.final(j, window) for j in live]
    per_branch = sum(run.spec.shape.correction_bytes(chunk) for chunk in kept)
    return per_branch * run.size.num_branches * full.num_streams


class _Run:
    """One pool, filled."""

    def __init__(self, size: StreamSize, codecs: StreamCodecs, pool_bytes: int, device: torch.device) -> None:
        self.size, self.codecs, self.device = size, codecs, device
        shape = size.shape
        book = CodecBook(shape.page, shape.num_kv_heads)
        book.check(codecs.all(), shape.num_layers)
        warm_up(device)
        _make_constants(book, codecs, shape, device)
        # Its angles do not matter. It is made before bytes are counted and keeps no tables, so that it does not count.
        frequencies = theta_frequencies(shape.head_dim).to(device, torch.float32)
        self._rope = GridRotary.of_sequence(frequencies, "half", num_cached=0)
        self._before = live_bytes(device)
        self.spec = _spec(size, codecs)
        self.cache = CacheManager(self.spec, pool_bytes, device)
        self.store = LayerStore(self.cache.pool, self.spec, book)
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
        """Commits chunk after chunk in all streams; the very last write under measurement."""
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
                else:  # all pages are taken; the temporaries of one range are those of every other
                    held = live_bytes(self.device) - self._before
                    self.peak_bytes = held + peak_extra_bytes(self.device, last)
            progress(number, num_commits)

    def _write(self, range_: RangePlan, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
        q, k, v = inputs
        for pending in range_.writes:
            own_tokens = sampled_offsets(range_, self.device) if pending.source is None else None
            readers = Readers(q, q, range_.first_token, own_tokens)
            for layer in range(self.size.shape.num_layers):
                self.store.write(layer, [Writing(pending, readers, k, v)], self._rope)

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
        """Every page must come back."""
        for stream in self.streams:
            self.cache.release(stream)
        self.cache.check()


def _make_constants(book: CodecBook, codecs: StreamCodecs, shape: KVShape, device: torch.device) -> None:
    """Uses every codec once: what codecs keep for the whole process, such as Hadamard matrices, is no cache."""
    for name in {name for chunk in codecs.all() for name in chunk.names(shape.num_layers)}:
        codec = book.codec(name, "keys", 0, slice(0, shape.num_kv_heads))
        records = codec.encode(torch.zeros(shape.num_kv_heads, 1, shape.head_dim, dtype=torch.float32, device=device))
        room = torch.empty(
            shape.num_kv_heads, shape.page.padded_tokens(1, name), shape.head_dim, dtype=torch.float32, device=device
        )
        codec.decode(records, 1, room)


def _spec(size: StreamSize, codecs: StreamCodecs) -> CacheSpec:
    shape: KVShape = size.shape
    return CacheSpec(
        shape.num_layers,
        shape.num_kv_heads,
        shape.head_dim,
        num_query_heads=size.num_query_heads,
        codecs=codecs,
        page_rows=shape.page_rows,
        tokens_per_frame=shape.tokens_per_frame,
        frames_per_block=shape.frames_per_block,
    )


def _inputs_bytes(size: StreamSize) -> int:
    """Sampled queries, keys and values of one layer of one chunk, BF16."""
    num_queries = min(size.chunk_tokens, MEASURED_QUERIES) * size.num_query_heads
    return BF16_BYTES * size.shape.head_dim * (num_queries + 2 * size.chunk_tokens * size.shape.num_kv_heads)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device is {shown(name)}; allowed are cpu, cuda and cuda:N") from None
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"--device is {shown(name)}; allowed are cpu, cuda and cuda:N")
    if device.type == "cuda" and (not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count()):
        raise ConfigError(
            f"--device is {shown(name)}, but PyTorch sees {torch.cuda.device_count()} CUDA devices here; use cpu"
        )
    return device


def _require_room(device: torch.device, num_bytes: int) -> None:
    available = available_bytes(device)
    if available is not None and num_bytes > available:
        raise CapacityError(
            f"the proof would allocate {format_bytes(num_bytes)} on {device}, where {format_bytes(available)} are "
            "free; give a smaller --memory, or --scale to build only a fraction of the layers"
        )
