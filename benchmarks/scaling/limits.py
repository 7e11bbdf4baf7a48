"""From what a chunk costs to the number of streams at which one HTTP process, or its network, is full.

Everything grows in proportion to the streams, so that a resource is full at `limit / what a stream takes in a second`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

MOST_OF_A_LIMIT = 0.7
"""Share of a limit that is planned with; beyond it queues grow long."""
AS_BUILT = "as built"
ENCODED_BY_REPLICAS = "replicas encode"
WRITTEN_BY_REPLICAS = "replicas encode and write"


@dataclass(frozen=True)
class UnitCosts:
    """Measured on one machine; `_us` are microseconds."""

    encode_us: float
    """A chunk of frames into a fragment."""
    append_us: float
    """A fragment to its file, the disk's flush included."""
    row_us: float
    """Its row in SQLite, the disk's flush included."""
    bookkeeping_us: float
    """Python for a chunk, from the worker's event to the housekeeper's, beside encoding."""
    watching_us: float
    """Python for a live session, a second."""
    hear_us: float
    """`Replicas`, for each event."""
    queue_us: float
    """Recorder's queue, for each event."""
    place_us: float
    """`Replicas`, for each new session among all replicas."""
    stats_us: float
    """`Replicas`, each time that it sums up the numbers of all."""
    call_us: float
    """Ray, for a call that brings little."""
    call_with_fragment_us: float
    call_with_frames_us: float
    look_us: float
    """HTTP, for each chunk and viewer."""
    megabyte_us: float
    """HTTP, for each megabyte that is sent."""
    store_bytes_per_second: float
    """Of frames through the object store of one machine, one process to one."""
    frames_bytes: int
    """Of a chunk, as they leave the model."""
    fragment_bytes: int
    """Of a chunk, encoded."""


@dataclass(frozen=True)
class Viewing:
    """What a live stream asks for."""

    chunks_per_second: float
    viewers: float
    """For each stream."""


@dataclass(frozen=True)
class Resource:
    """What a stream takes of something in a second, and how much of it there is."""

    name: str
    per_stream: float
    limit: float

    @property
    def streams(self) -> float:
        """With which it is full."""
        return self.limit / self.per_stream if self.per_stream else math.inf

    def load(self, streams: float) -> float:
        """Share of the limit; above 1 it cannot be done."""
        return streams * self.per_stream / self.limit


def designs(costs: UnitCosts, viewing: Viewing, network_bytes_per_second: float) -> Mapping[str, list[Resource]]:
    """The resources of one HTTP process: as built, and with work moved to the replicas."""
    told_us = costs.bookkeeping_us + costs.hear_us + costs.queue_us
    sent_bytes = viewing.viewers * costs.fragment_bytes
    sent_us = viewing.viewers * costs.look_us + costs.megabyte_us * sent_bytes / 1e6

    def resources(recorder_us: float, python_us: float, in_bytes: float, out_bytes: float) -> list[Resource]:
        rate = viewing.chunks_per_second
        return [
            Resource("recorder's thread", rate * recorder_us, 1e6),
            Resource("Python, one core", rate * (told_us + python_us) + costs.watching_us, 1e6),
            Resource("network in", rate * in_bytes, network_bytes_per_second),
            Resource("network out", rate * out_bytes, network_bytes_per_second),
        ]

    row_us, append_us = costs.queue_us + costs.row_us, costs.append_us
    stored_and_sent = costs.fragment_bytes + sent_bytes
    return {
        AS_BUILT: resources(
            row_us + append_us + costs.encode_us,
            costs.call_with_frames_us + sent_us,
            costs.frames_bytes,
            stored_and_sent,
        ),
        ENCODED_BY_REPLICAS: resources(
            row_us + append_us, costs.call_with_fragment_us + sent_us, costs.fragment_bytes, stored_and_sent
        ),
        WRITTEN_BY_REPLICAS: resources(row_us, costs.call_us, 0, 0),
    }


def first_full(resources: list[Resource]) -> Resource:
    """The resource that is full with the fewest streams."""
    return min(resources, key=lambda it: it.streams)


def num_services(resources: list[Resource], streams: float) -> int:
    """How many such processes so many streams want, each with a share of them."""
    return math.ceil(streams / (MOST_OF_A_LIMIT * first_full(resources).streams))
