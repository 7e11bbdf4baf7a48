"""Long videos from the engine: what their last frames show, and what a stream takes in memory.

right   percentage of what the prompt says that the last frames show
memory  the most bytes that a stream ever holds, the chunk that it commits included
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from budgets.bits import Pages, by_head_rows, uniform_rows
from budgets.video import Row
from fidelity.processes import shared
from lib.lab import Lab
from lib.quality import READ_FRAMES, Task, score_attributes
from lib.report import note
from pagedvid.budgets.profile import Profile
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.codecs.registry import read_codec
from pagedvid.models.demo.weights import load_demo

BF16, BF16_ROWS = "bf16", 32
"""Pages of 16 tokens, which the demo model's chunks of 128 fill without padding."""
OLD_DEFAULT = 2.25
"""Bits of the uniform codecs that were the default before bits by head."""


def long_rows(lab: Lab, klt: Profile, budgets: Sequence[float]) -> list[Row]:
    """bf16, the old default, and what takes its place."""
    before = [Row(BF16, read_codec(BF16).bits, Pages(StreamCodecs(BF16), BF16_ROWS)), *uniform_rows(OLD_DEFAULT)]
    return before + [row for bits in budgets for row in by_head_rows(lab, klt, bits)]


_given: tuple[Lab, Sequence[Task]] | None = None
"""What this process was started with."""


def _start(lab: tuple[Any, ...], tasks: Sequence[Task]) -> None:
    """Loads the model: everything else is passed between processes."""
    global _given
    _given = Lab(load_demo(lab[-1]), *lab), tasks


def _measure(row: Row) -> dict[str, Any]:
    assert _given is not None  # _start ran
    lab, tasks = _given
    note(f"long videos: {row.method}, {row.budget:g} bits")
    cache = row.storage.cache(lab)
    videos = lab.engine_frames(cache)
    return {
        "method": row.method,
        "budget": row.budget,
        "bits": round(row.storage.bits(lab, cache), 4),
        "frames": lab.num_frames,
        "right": score_attributes(tasks, videos, lab.num_frames - READ_FRAMES)["all"],
        "stream_bytes": lab.caches.stream_bytes(cache.spec),
    }


def measure_long(lab: Lab, tasks: Sequence[Task], rows: Sequence[Row], num_processes: int) -> list[dict[str, Any]]:
    """For the JSON file, one result per row."""
    given = (lab.requests, lab.num_frames, lab.num_denoise_steps, lab.weights)
    return shared(_measure, rows, num_processes, _start, (given, tasks))
