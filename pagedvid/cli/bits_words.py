"""What a number of bits means for a model, in a few lines: how many heads are stored in which codec."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pagedvid.models.build import RunSpec


def bits_lines(run: RunSpec) -> list[str]:
    """Lines of "what  text"; empty where bits are not spent head by head."""
    spending, cache = run.spending, run.config.cache
    if spending is None:
        return []
    heads = [stored for row in spending.heads for stored in row]
    lines = [
        f"bits     {cache.bits:g} per value asked for, {spending.bits:.3f} spent by the profile of the model",
        f"keys     {_counted(stored.keys for stored in heads)}",
        f"values   {_counted(stored.values for stored in heads)}",
    ]
    if cache.look_back == "per_head":
        windows = ((stored.recent_chunks, stored.keeps_sinks) for stored in heads)
        shorter = Counter(each for each in windows if each != spending.window)
        named = [f"{count} x {_window(*each)}" for each, count in sorted(shorter.items())]
        lines.append(f"history  {', '.join([*named, f'{len(heads) - shorter.total()} x the whole window'])}")
    return lines


def _counted(names: Iterable[str]) -> str:
    """Each codec with the number of its heads, the most frequent first."""
    return ", ".join(f"{count} x {name}" for name, count in Counter(names).most_common())


def _window(recent_chunks: int, keeps_sinks: bool) -> str:
    return f"the newest {recent_chunks}{' + sinks' if keeps_sinks else ''}"
