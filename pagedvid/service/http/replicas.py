"""The workers of a service that has several: how each stands, and emptying one before its machine goes away."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from fastapi import Path as InPath
from pydantic import BaseModel

from pagedvid.service.http.state import ERRORS, TheService
from pagedvid.service.replica_stats import ReplicaStats

router = APIRouter(prefix="/v1/replicas", tags=["replicas"], responses=ERRORS)
Number = Annotated[int, InPath(ge=0, le=10_000)]


class ReplicaObject(BaseModel):
    """One worker, with a pool and a device of its own."""

    number: int
    state: str
    is_draining: bool
    """Whether it gets no new sessions."""
    num_sessions: int
    """That are on it and not over; none once it is drained."""
    num_pages: int
    free_pages: int

    @staticmethod
    def of(stats: ReplicaStats) -> ReplicaObject:
        """As clients see it."""
        pool = stats.worker.pool
        num_pages, free_pages = (0, 0) if pool is None else (pool.num_pages, pool.free_pages)
        return ReplicaObject(
            number=stats.number,
            state=stats.worker.state,
            is_draining=stats.is_draining,
            num_sessions=stats.num_sessions,
            num_pages=num_pages,
            free_pages=free_pages,
        )


class ReplicaList(BaseModel):
    """All of them."""

    data: list[ReplicaObject]


@router.get("")
def list_replicas(service: TheService) -> ReplicaList:
    """How each replica stands; none for a service with one worker."""
    return ReplicaList(data=[ReplicaObject.of(stats) for stats in service.sessions.replicas()])


@router.post("/{number}/drain")
def drain_replica(number: Number, service: TheService) -> ReplicaList:
    """From now on it gets no new session, and its sessions move to others, each from a checkpoint."""
    service.sessions.drain(number)
    return list_replicas(service)


@router.post("/{number}/refill")
def refill_replica(number: Number, service: TheService) -> ReplicaList:
    """A drained replica takes sessions again."""
    service.sessions.refill(number)
    return list_replicas(service)
