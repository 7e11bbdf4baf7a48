"""What a run of `pagedvid generate` did, and the lines that say so at its end."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pagedvid.config.sections import CacheConfig
from pagedvid.units import format_bytes

if TYPE_CHECKING:
    from pagedvid.cache.stats import CacheStats


@dataclass
class RunResult:
    """What a run did."""

    num_done: int = 0
    num_failed: int = 0
    num_left: int = 0
    """Videos that were not made because the run ended early."""
    was_interrupted: bool = False
    """Whether the user ended the run early."""
    num_frames: int = 0
    """Frames of the finished videos."""
    seconds: float = 0.0
    stored_bytes: int = 0
    """Sum of the finished videos' peak cache bytes."""
    bf16_bytes: int = 0
    """The same tokens as dense BF16."""
    pool: CacheStats | None = None
    """The cache at the end; None when nothing ran."""
    fullest: CacheStats | None = None
    """The cache when it held the most bytes; None when nothing was committed."""


def summary_lines(
    result: RunResult, num_skipped: int, cache: CacheConfig, place: Path | str, num_devices: int = 1
) -> list[str]:
    """What was made, how fast, in how many bytes, and where."""
    rows = [("videos", _videos(result, num_skipped))]
    if result.num_done:
        rows.append(("frames", _frames(result)))
        bits = "" if cache.bits is None else f", {cache.bits:g} bits a value"
        rows.append(("codec", f"{cache.codec}{bits}, correction {cache.correction}"))
        rows.append(("cache", _cache(result)))
    if result.pool and result.fullest:
        rows.append(("pages", _pages(result.pool, result.fullest)))
    if num_devices > 1:
        rows.append(("devices", devices_line(num_devices)))
    rows.append(("files", f"{place}/"))
    return [f"{name:8}{text}" for name, text in rows]


def devices_line(num_devices: int) -> str:
    """What bytes and pages count where several devices share the heads."""
    return f"{num_devices}; bytes and pages are those of the first"


def _videos(result: RunResult, num_skipped: int) -> str:
    counts = [
        (result.num_done, "done"),
        (result.num_failed, "failed"),
        (num_skipped, "done before"),
        (result.num_left, "not made (--resume makes them)"),
    ]
    return ", ".join(f"{count} {what}" for count, what in counts if count or what == "done")


def _frames(result: RunResult) -> str:
    return f"{result.num_frames} in {result.seconds:.1f} s = {result.num_frames / result.seconds:.1f} frames/s"


def _cache(result: RunResult) -> str:
    """Bytes per video at its peak, metadata and padding included, against the same tokens in BF16."""
    if not result.bf16_bytes:
        return "empty: nothing reads the only chunk of a video"
    stored, dense = result.stored_bytes // result.num_done, result.bf16_bytes // result.num_done
    return f"{format_bytes(stored)} per video, {stored / dense:.3f} of its {format_bytes(dense)} in bf16"


def _pages(pool: CacheStats, fullest: CacheStats) -> str:
    peak = f"peak {pool.pages_peak} of {pool.num_pages} ({format_bytes(pool.page_bytes)} each)"
    return f"{peak}, padding waste {fullest.padding_waste_ratio:.1%}"
