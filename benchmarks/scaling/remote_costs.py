"""What it costs to hear of a chunk from another process: a real `RemoteWorker`, and Ray with its object store."""

from __future__ import annotations

import sys
import time

import numpy as np

from pagedvid.cluster.cluster import LOCAL, Cluster
from pagedvid.cluster.library import pickle_library, ray_library
from pagedvid.cluster.remote_worker import RemoteWorker
from pagedvid.service.events import ChunkEvent
from pagedvid.service.stats import WORKING, WorkerStats
from scaling.driver_costs import Frames

_STORE_BYTES = 2**29


class ChunkSource:
    """In place of a `WorkerActor`: always has the same events ready."""

    def __init__(self, frames: Frames) -> None:
        self._frames = frames

    async def events(self) -> tuple[list[ChunkEvent], WorkerStats]:
        """One chunk; none for a source without frames."""
        chunks = [ChunkEvent("video", 0, 0, self._frames.copy(), False, 0, 0)] if len(self._frames) else []
        return chunks, WorkerStats(WORKING)


def remote_costs(frames_FHWC: Frames, fragment_bytes: int, num_calls: int) -> dict[str, float]:
    """CPU microseconds of the driver for each call without events, with a fragment's bytes, and with a chunk's frames;
    bytes per second of frames from one process to another on this machine. Starts a Ray of its own."""
    pickle_library().register_pickle_by_value(
        sys.modules[__name__]
    )  # Ray's processes do not have the folder of the benchmarks
    sources = {
        "empty": frames_FHWC[:0],
        "fragment": np.zeros((1, 1, fragment_bytes, 1), np.uint8),
        "frames": frames_FHWC,
    }
    costs = {}
    with Cluster(LOCAL, _STORE_BYTES):
        for name, frames in sources.items():
            actor = ray_library().remote(num_cpus=0)(ChunkSource).remote(frames)
            worker = RemoteWorker(actor)
            for _ in range(10):
                worker.events().result()
            cpu_began, began = time.process_time(), time.perf_counter()
            for _ in range(num_calls):
                worker.events().result()
            seconds = time.perf_counter() - began
            costs[name] = 1e6 * (time.process_time() - cpu_began) / num_calls
            worker.kill()
    return {**costs, "frames_bytes_per_second": num_calls * frames_FHWC.nbytes / seconds}
