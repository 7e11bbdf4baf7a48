"""The figures of a load: what its viewers got, as numbers and as lines of tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from serving.viewer import Visit

VISIT_HEADERS = ("ratio", "p10", "first", "p99", "gap", "p99", "refused")


def figures(visits: Sequence[Visit]) -> dict[str, Any]:
    """Of viewers who were not refused. A viewer who left without a chunk has waited for at least as long as it stayed;
    that counts as its time to the first chunk."""
    seen = [visit for visit in visits if visit.refusal is None]
    ratios = [visit.play_ratio for visit in seen]
    firsts = [visit.chunk_seconds[0] if visit.chunk_seconds else visit.waited_seconds for visit in seen]
    gaps = [gap for visit in seen for gap in visit.gaps_seconds]
    return {
        "viewers": len(visits),
        "refused": len(visits) - len(seen),
        "without_a_chunk": sum(not visit.chunk_seconds for visit in seen),
        "play_ratio": {"mean": _mean(ratios), "p10": _percentile(ratios, 10), "p50": _percentile(ratios, 50)},
        "stalled_share": _mean([_stalled_share(visit) for visit in seen if visit.chunk_seconds]),
        "first_chunk_seconds": {"p50": _percentile(firsts, 50), "p99": _percentile(firsts, 99)},
        "gap_seconds": {"p50": _percentile(gaps, 50), "p99": _percentile(gaps, 99)},
        "visits": [asdict(visit) for visit in visits],
    }


def cells(found: Mapping[str, Any]) -> tuple[str, ...]:
    """The cells under `VISIT_HEADERS`."""
    ratio, first, gap = found["play_ratio"], found["first_chunk_seconds"], found["gap_seconds"]
    numbers = (ratio["mean"], ratio["p10"], first["p50"], first["p99"], gap["p50"], gap["p99"])
    return (*("-" if number is None else f"{number:.2f}" for number in numbers), str(found["refused"]))


def _stalled_share(visit: Visit) -> float:
    """Of the time after the first chunk."""
    whole = visit.played_seconds + visit.stalled_seconds
    return visit.stalled_seconds / whole if whole else 0.0


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _percentile(values: Sequence[float], percent: float) -> float | None:
    return float(np.percentile(values, percent)) if values else None
