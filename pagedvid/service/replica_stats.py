"""What many workers say about themselves, each and together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from statistics import fmean
from typing import Any

from pagedvid.engine.pace import TokenSeconds
from pagedvid.engine.requests import EngineStats
from pagedvid.engine.states import WAITING
from pagedvid.service.stats import STARTING, WORKING, Durations, PoolStats, WorkerStats


@dataclass(frozen=True)
class ReplicaStats:
    """One moment of a replica."""

    number: int
    is_draining: bool
    """Whether it gets no new sessions."""
    num_sessions: int
    """That are on it and not over."""
    worker: WorkerStats


def soonest(replicas: Sequence[ReplicaStats]) -> ReplicaStats:
    """Where a new session would be made soonest: where nobody waits for pages, then where a token takes least time if
    all sessions there share the device, then where most pages are free. One that is not measured yet counts as the
    fastest."""
    paces = [it.worker.token_seconds.denoise for it in replicas if it.worker.token_seconds is not None]
    fastest = min(paces, default=1.0)

    def order(replica: ReplicaStats) -> tuple[bool, float, int]:
        stats = replica.worker
        pace = fastest if stats.token_seconds is None else stats.token_seconds.denoise
        is_full = any(video.state == WAITING for video in stats.videos)
        return is_full, (replica.num_sessions + 1) * pace, -(0 if stats.pool is None else stats.pool.free_pages)

    return min(replicas, key=order)


def together(replicas: Sequence[WorkerStats]) -> WorkerStats:
    """All of them as if they were one: counts are added, the time of a token is what they reach together.

    The state is that of the best of them, because others take the sessions of one that is not working.
    """
    states = [stats.state for stats in replicas]
    paces = [stats.token_seconds for stats in replicas if stats.token_seconds is not None]
    return WorkerStats(
        state=WORKING if WORKING in states else next(iter(states), STARTING),
        reason="; ".join(stats.reason for stats in replicas if stats.reason),
        num_rebuilds=sum(stats.num_rebuilds for stats in replicas),
        pool=_pool([stats.pool for stats in replicas if stats.pool is not None]),
        videos=tuple(video for stats in replicas for video in stats.videos),
        engine=_added([stats.engine for stats in replicas if stats.engine is not None], EngineStats),
        token_seconds=TokenSeconds(
            fmean(pace.denoise for pace in paces) / len(paces), fmean(pace.commit for pace in paces) / len(paces)
        )
        if paces
        else None,
        cache=next((stats.cache for stats in replicas if stats.cache is not None), None),
        queue=_queue([stats.queue for stats in replicas if stats.queue is not None]),
    )


def _pool(pools: Sequence[PoolStats]) -> PoolStats | None:
    added = _added(pools, PoolStats)
    return None if added is None else replace(added, page_bytes=pools[0].page_bytes)


def _queue(times: Sequence[Durations]) -> Durations | None:
    if not times:
        return None
    counts = tuple(map(sum, zip(*(one.counts for one in times), strict=True)))
    return Durations(times[0].bounds_seconds, counts, sum(one.sum_seconds for one in times))


def _added(stats: Sequence[Any], kind: Callable[..., Any]) -> Any:
    """Field by field; None for none."""
    if not stats:
        return None
    return kind(**{it.name: sum(getattr(one, it.name) for one in stats) for it in fields(stats[0])})
