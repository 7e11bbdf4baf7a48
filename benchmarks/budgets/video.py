"""Videos of the demo model with every storage of the comparison, against the bf16 run with the same prompts and seeds.

free   PSNR in dB of the first two chunks that read stored ones, when the model goes on from its own chunks
held   PSNR of chunks 5 to 7, when the history holds the reference's chunks: the window is full there, so that every
       storage holds what its budget says and nothing more, and no chunk inherits the errors of another
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from fidelity.processes import shared
from lib.caches import REFERENCE
from lib.lab import COMPARED_CHUNKS, Lab
from lib.report import note
from pagedvid.models.demo.weights import load_demo
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.quality.metrics import psnr

FREE_CHUNKS = range(COMPARED_CHUNKS[0], COMPARED_CHUNKS[-1] + 1)
HELD_CHUNKS = range(5, 8)
Result = dict[str, Any]


class Storage(Protocol):
    """One way to keep the history of a video: plain data, so that processes can pass it on."""

    def cache(self, lab: Lab) -> PagedKVCache:
        """An empty cache with room for all videos of the lab."""
        ...

    def bits(self, lab: Lab, cache: PagedKVCache) -> float:
        """Stored bits per element of a full window. The cache must have stored something."""
        ...


@dataclass(frozen=True)
class Row:
    """One storage at one budget."""

    method: str
    budget: float
    """Bits per element that it may take."""
    storage: Storage


@dataclass(frozen=True)
class Bench:
    """The videos to make, and the reference to compare them with."""

    lab: Lab
    history: Sequence[Tensor]
    """Clean latents of the bf16 run by chunk."""
    reference: Sequence[np.ndarray]
    """Frames of that run by chunk, uint8 [videos, F, H, W, 3]."""

    @staticmethod
    def of(lab: Lab) -> Bench:
        """Makes the reference."""
        note(f"videos: {REFERENCE}")
        made = lab.loop(lab.cache(REFERENCE), HELD_CHUNKS.stop).generate()
        return Bench(lab, made.latents, made.frames)

    def measure(self, row: Row) -> Result:
        """Bits, and PSNR of every video."""
        note(f"videos: {row.method}, {row.budget:g} bits")
        cache = row.storage.cache(self.lab)
        free = self.lab.loop(cache, FREE_CHUNKS.stop).generate()
        held = self.lab.loop(cache, HELD_CHUNKS.stop).generate(self.history, num_given=HELD_CHUNKS.start)
        return {
            "bits": round(row.storage.bits(self.lab, cache), 4),
            "free": self._psnr(free.frames[FREE_CHUNKS.start :], FREE_CHUNKS),
            "held": self._psnr(held.frames, HELD_CHUNKS),
        }

    def _psnr(self, frames: Sequence[np.ndarray], chunks: range) -> list[float]:
        videos = np.concatenate(frames, axis=1)
        reference = np.concatenate(self.reference[chunks.start : chunks.stop], axis=1)
        return [round(psnr(a, b), 4) for a, b in zip(videos, reference, strict=True)]


_bench: Bench | None = None
"""What this process was started with."""


def _start(lab: tuple[Any, ...], compared: tuple[Any, ...]) -> None:
    """Loads the model: everything else is passed between processes."""
    global _bench
    _bench = Bench(Lab(load_demo(lab[-1]), *lab), *compared)


def _measure(row: Row) -> Result:
    assert _bench is not None  # _start ran
    return _bench.measure(row)


def measure_rows(bench: Bench, rows: Sequence[Row], num_processes: int) -> list[Result]:
    """For the JSON file: method and budget of every row, and what was measured."""
    lab = (bench.lab.requests, bench.lab.num_frames, bench.lab.num_denoise_steps, bench.lab.weights)
    results = shared(_measure, rows, num_processes, _start, (lab, (bench.history, bench.reference)))
    return [{"method": row.method, "budget": row.budget, **result} for row, result in zip(rows, results, strict=True)]
