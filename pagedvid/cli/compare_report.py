"""What `pagedvid compare` says of two sides: a table for people and JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagedvid.cli.capacity_report import columns
from pagedvid.output.manifest import ManifestEntry
from pagedvid.quality.comparison import Compared
from pagedvid.quality.metrics import mean_and_error
from pagedvid.shown import short
from pagedvid.units import format_bytes

COLUMNS = {
    "psnr_db": ("PSNR dB", ".2f"),
    "ssim": ("SSIM", ".4f"),
    "lpips": ("LPIPS", ".4f"),
    "flicker": ("flicker", ".3f"),
    "change_a": ("change A", ".3f"),
    "change_b": ("change B", ".3f"),
}
"""Header and format of each value."""
NAME_CHARS = 26
MAX_NOTE_CHARS = 80


@dataclass(frozen=True)
class Side:
    """One of the two folders or files, and what the manifests say of its compared videos."""

    path: Path
    entries: Sequence[ManifestEntry]

    def facts(self) -> dict[str, Any]:
        """Codec, and means over videos of the most bytes of keys and values that a video held, and of the same in bf16;
        None where the manifests do not say it."""
        settings = self.entries[0].settings if self.entries else {}
        return {
            "path": str(self.path),
            "codec": settings.get("cache.codec"),
            "bits": settings.get("cache.bits"),
            "cache_peak_bytes": self._mean("cache_peak_bytes"),
            "cache_bf16_bytes": self._mean("cache_bf16_bytes"),
        }

    def _mean(self, name: str) -> float | None:
        values = [entry.details.get(name) for entry in self.entries]
        numbers = [value for value in values if isinstance(value, int)]
        return sum(numbers) / len(numbers) if numbers else None


@dataclass(frozen=True)
class QualityReport:
    """The compared videos in order, and what was left out of the comparison."""

    a: Path
    b: Path
    compared: Sequence[Compared]
    left_out: Mapping[str, str]
    """The reason by name of the video."""
    notes: Sequence[str] = field(default_factory=tuple)

    def sides(self) -> tuple[Side, Side]:
        """The reference, and the other."""
        in_a = [it.pair.entry_a for it in self.compared if it.pair.entry_a is not None]
        in_b = [it.pair.entry_b for it in self.compared if it.pair.entry_b is not None]
        return Side(self.a, in_a), Side(self.b, in_b)

    def differing_settings(self) -> list[str]:
        """Settings and files that differ between the sides, as "cache.codec: bf16 -> int2"."""
        before, now = (side.entries for side in self.sides())
        return before[0].job_differences(now[0].settings, now[0].files) if before and now else []

    def means(self) -> dict[str, dict[str, float | int | None]]:
        """By value: mean, its standard error (None for one video), and the number of videos that have it."""
        found: dict[str, dict[str, float | int | None]] = {}
        for key in self._keys():
            values = [it.values[key] for it in self.compared if key in it.values]
            mean, error = mean_and_error(values)
            found[key] = {
                "mean": mean,
                "standard_error": None if math.isnan(error) else error,
                "num_videos": len(values),
            }
        return found

    def data(self) -> dict[str, Any]:
        """All of it, to be written as JSON."""
        side_a, side_b = self.sides()
        return {
            "a": side_a.facts(),
            "b": side_b.facts(),
            "differing_settings": self.differing_settings(),
            "videos": [_video_data(it) for it in self.compared],
            "means": self.means(),
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """The table, at most 80 characters wide unless a path is longer."""
        settings = self.differing_settings()
        heading = [_side_line(name, side) for name, side in zip("AB", self.sides(), strict=True)]
        heading += [short(f"{'differ' if i == 0 else '':6}  {it}", MAX_NOTE_CHARS) for i, it in enumerate(settings)]
        return [*heading, "", *self._table(), *(["", *self.notes] if self.notes else [])]

    def _keys(self) -> list[str]:
        return [key for key in COLUMNS if any(key in it.values for it in self.compared)]

    def _table(self) -> list[str]:
        keys, means = self._keys(), self.means()
        rows = [_cells(it.pair.name, it.values, keys) for it in self.compared]
        errors = {key: values["standard_error"] for key, values in means.items()}
        mean = _cells(f"mean of {len(self.compared)}", {key: values["mean"] for key, values in means.items()}, keys)
        rows += [mean, _cells("standard error", errors, keys)]
        lines = columns(["video", *(COLUMNS[key][0] for key in keys)], rows)
        rule = "-" * max(map(len, lines))
        return [lines[0], rule, *lines[1:-2], rule, *lines[-2:]]


def _cells(name: str, values: Mapping[str, float | int | None], keys: Sequence[str]) -> list[str]:
    numbers = ((values.get(key), COLUMNS[key][1]) for key in keys)
    return [short(name, NAME_CHARS), *("-" if value is None else format(value, how) for value, how in numbers)]


def _side_line(name: str, side: Side) -> str:
    """As "A  bf/: codec int2, cache 162 KiB per video, 0.141 of bf16"."""
    facts = side.facts()
    parts = [f"codec {facts['codec']}" if facts["codec"] else "codec not known"]
    if facts["bits"] is not None:
        parts.append(f"{facts['bits']} bits")
    if facts["cache_peak_bytes"] is not None:
        parts.append(f"cache {format_bytes(round(facts['cache_peak_bytes']))} per video")
        if facts["cache_bf16_bytes"]:
            parts.append(f"{facts['cache_peak_bytes'] / facts['cache_bf16_bytes']:.3f} of bf16")
    return f"{name:6}  {side.path}: {', '.join(parts)}"


def _video_data(compared: Compared) -> dict[str, Any]:
    pair = compared.pair
    found: dict[str, Any] = {
        "name": pair.name,
        "num_frames": pair.shape.num_frames,
        "height": pair.shape.height,
        "width": pair.shape.width,
        **compared.values,
    }
    for side, entry in (("a", pair.entry_a), ("b", pair.entry_b)):
        if entry is not None:
            found[f"cache_peak_bytes_{side}"] = entry.details.get("cache_peak_bytes")
    return found
