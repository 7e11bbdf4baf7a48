"""Pictures of curves. Only this file imports matplotlib, from the extra `plot`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pagedvid.errors import ConfigError
from pagedvid.shown import shown

SUFFIXES = (".png", ".svg", ".pdf")
COLORS = ("#4d4d4d", "#0072b2", "#009e73", "#d55e00", "#cc79a7", "#e69f00", "#56b4e9", "#999933")
"""Colour-blind readers can tell them apart."""


def new_figure(path: Path, width: float = 8, height: float = 5) -> Any:
    """An empty figure of that many inches, to be saved under `path` (--plot).

    Raises ConfigError for another ending than those of SUFFIXES, and when matplotlib is missing.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--plot is {shown(str(path))}; allowed endings are {', '.join(SUFFIXES)}")
    try:
        from matplotlib.figure import Figure  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ConfigError("--plot needs matplotlib; install it with: pip install 'pagedvid[plot]'") from None
    return Figure(figsize=(width, height), dpi=150, layout="constrained")


def save_figure(figure: Any, path: Path) -> None:
    """Writes the picture. Raises ConfigError when the file cannot be written."""
    try:
        figure.savefig(path)
    except OSError as error:
        raise ConfigError(f"--plot {path} cannot be written: {error}") from None
