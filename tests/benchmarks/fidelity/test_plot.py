"""The plot: the Pareto front, and labels that do not overlap."""

from __future__ import annotations

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.text import Text

from fidelity.plot import Point, _label, front, psnr_points


def test_front_is_what_nothing_smaller_reaches() -> None:
    points = [
        Point(str(i), bits, value, "pagedvid") for i, (bits, value) in enumerate([(1, 5), (2, 4), (2, 6), (3, 6)])
    ]
    assert [point.name for point in front(points, higher_is_better=True)] == ["0", "2"]
    assert [point.name for point in front(points, higher_is_better=False)] == ["0", "1"]


def test_labels_are_apart(tmp_path: Path) -> None:
    figure = Figure(figsize=(6, 6))
    axes = figure.add_subplot()
    points = [Point(f"storage {i}", 2 + 0.02 * i, 30 + 0.1 * i, "pagedvid") for i in range(6)]
    axes.scatter([p.bits for p in points], [p.value for p in points])
    axes.set_xlim(1, 3)
    axes.set_ylim(25, 35)
    _label(axes, points)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in axes.texts]
    assert len(boxes) == 6
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_a_storage_has_its_best_correction() -> None:
    rows = [
        {"storage": storage, "factor": factor, "bits": bits, "psnr": [psnr]}
        for storage, bits, psnr, factor in (
            ("int2", 2.25, 30.0, None), ("int2", 2.3, 31.0, None), ("int2", 2.25, 50.0, 2.0),
            ("klt2", 2.0, 40.0, None), ("klt2", 2.06, 40.05, None),
        )
    ]  # fmt: skip
    points = {point.name: point for point in psnr_points(rows, lambda name: True)}
    assert (points["int2"].bits, points["int2"].value, points["int2"].kind) == (2.3, 31.0, "pagedvid")
    assert points["klt2"].bits == 2.0
