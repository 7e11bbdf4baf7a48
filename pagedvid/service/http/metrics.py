"""`/metrics`: what Prometheus reads. Counters and histograms are kept as things happen, gauges are read when asked for.

No label names a session: there would be more of them every day.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.registry import Collector
from typing_extensions import override

from pagedvid.engine.requests import EngineStats
from pagedvid.engine.states import STATES
from pagedvid.service.http.observer import Observer
from pagedvid.service.stats import (
    DEAD,
    REBUILDING,
    STARTING,
    STOPPED,
    WORKING,
    CacheInfo,
    Durations,
    PoolStats,
    WorkerStats,
)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_SECONDS = (0.005, 0.02, 0.1, 0.5, 2, 10, 60)
Family = GaugeMetricFamily | CounterMetricFamily | HistogramMetricFamily | InfoMetricFamily


class Metrics:
    """The figures of one app, in a registry of its own."""

    def __init__(self, read_stats: Callable[[], WorkerStats], read_num_clients: Callable[[], int]) -> None:
        """`read_stats`: the worker's numbers of this moment. `read_num_clients`: how many clients listen now."""
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "pagedvid_http_requests_total", "Requests.", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "pagedvid_http_request_seconds",
            "Duration of requests, streams included.",
            ["route"],
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.observer = Observer(self._registry)
        self._registry.register(_WorkerCollector(read_stats, read_num_clients))

    def count_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Counts a request that has ended. `route`: its pattern, not its path; `seconds`: its duration."""
        known = method if method in ("GET", "POST", "DELETE", "WEBSOCKET") else "other"
        self._requests.labels(known, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All figures, as Prometheus reads them."""
        return generate_latest(self._registry)


class _WorkerCollector(Collector):
    """Gauges and counters of the worker, its pool and its engine at this moment."""

    def __init__(self, read_stats: Callable[[], WorkerStats], read_num_clients: Callable[[], int]) -> None:
        self._read_stats, self._read_num_clients = read_stats, read_num_clients

    @override
    def collect(self) -> Iterator[Family]:
        """All families."""
        stats = self._read_stats()
        yield GaugeMetricFamily("pagedvid_event_clients", "Clients that listen.", value=self._read_num_clients())
        yield _by(
            "pagedvid_worker_state",
            "1 for the state in which the worker is.",
            {state: int(state == stats.state) for state in (STARTING, WORKING, REBUILDING, STOPPED, DEAD)},
        )
        yield CounterMetricFamily("pagedvid_engine_rebuilds", "How often the engine broke.", value=stats.num_rebuilds)
        token = stats.token_seconds  # None until it was measured
        passes = {} if token is None else {"denoise": token.denoise, "commit": token.commit}
        yield _by("pagedvid_seconds_per_token", "Time of a token, as measured of late.", passes, "kind")
        tally = Tally(video.state for video in stats.videos)
        yield _by("pagedvid_streams", "Videos in the engine.", {state: tally[state] for state in STATES})
        if stats.queue is not None:
            yield _histogram("pagedvid_queue_seconds", "How long videos waited before they began.", stats.queue)
        if stats.cache is not None:
            yield _info(stats.cache)
        if stats.pool is not None:
            yield from _pool(stats.pool)
        if stats.engine is not None:
            yield from _engine(stats.engine)


def _pool(pool: PoolStats) -> Iterator[Family]:
    pages = {"free": pool.free_pages, "reserved": pool.reserved_pages, "used": pool.used_pages}
    yield _by("pagedvid_pages", "Pages of the pool.", pages)
    yield GaugeMetricFamily("pagedvid_page_bytes", "Bytes of a page.", value=pool.page_bytes)
    yield GaugeMetricFamily(
        "pagedvid_page_usage_ratio", "Share of the pages that hold something.", value=pool.used_pages / pool.num_pages
    )
    yield GaugeMetricFamily("pagedvid_shared_pages", "Pages that several videos hold.", value=pool.shared_pages)
    yield CounterMetricFamily(
        "pagedvid_chunks_evicted", "Chunks that left the windows of videos.", value=pool.num_evicted_chunks
    )
    stored = {"stored": pool.stored_bytes, "bf16": pool.bf16_bytes}
    yield _by("pagedvid_history_bytes", "What the used pages hold, and the same as dense BF16.", stored, "kind")
    host = {"swapped": pool.swapped_bytes, "limit": pool.host_bytes}
    yield _by("pagedvid_host_bytes", "Host memory of swapped streams.", host, "kind")


def _engine(engine: EngineStats) -> Iterator[Family]:
    yield CounterMetricFamily("pagedvid_chunks_committed", "Chunks that became clean.", value=engine.num_chunks_done)
    yield CounterMetricFamily("pagedvid_forks", "Videos that began with another one's history.", value=engine.num_forks)
    swaps = {"out": engine.num_swaps_out, "in": engine.num_swaps_in}
    yield _counter("pagedvid_swaps", "Whole streams that moved to host memory and back.", swaps, "direction")
    num_bytes = {"out": engine.swapped_out_bytes, "in": engine.swapped_in_bytes}
    yield _counter("pagedvid_swap_bytes", "Bytes that these moves copied.", num_bytes, "direction")
    yield CounterMetricFamily("pagedvid_steps", "Packed forwards.", value=engine.num_steps)
    yield CounterMetricFamily("pagedvid_step_seconds", "Time of whole steps.", value=engine.step_seconds)
    yield CounterMetricFamily("pagedvid_forward_seconds", "Time in the model's forward.", value=engine.forward_seconds)


def _info(cache: CacheInfo) -> Family:
    labels = {name: str(value) for name, value in vars(cache).items()}
    return InfoMetricFamily("pagedvid_cache", "What the cache is like.", value=labels)


def _histogram(name: str, text: str, times: Durations) -> Family:
    """Prometheus counts in each bucket what is in those before it, too."""
    bounds = [*map(str, times.bounds_seconds), "+Inf"]
    buckets = list(zip(bounds, accumulate(times.counts), strict=True))
    return HistogramMetricFamily(name, text, buckets=buckets, sum_value=times.sum_seconds)


def _counter(name: str, text: str, values: Mapping[str, float], label: str) -> Family:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


def _by(name: str, text: str, values: Mapping[str, float], label: str = "state") -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family
