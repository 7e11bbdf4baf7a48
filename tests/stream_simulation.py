"""What a stream's chunks go through, retold without the package: plain dictionaries and page sizes by hand."""

from __future__ import annotations

import math

from pagedvid.geometry import RoleCodecs, Window

PAGE_TOKENS = {"fp32": 9, "bf16": 18, "int8": 32, "int4": 64, "int2": 128}


def table_pages(num_tokens: int, codec: str) -> int:
    """Pages of one (layer, KV head)."""
    return math.ceil(num_tokens / PAGE_TOKENS[codec])


def settled_codec(codecs: RoleCodecs, window: Window, index: int) -> str:
    """The codec in which a chunk ends up."""
    return codecs.sink if codecs.sink and index < window.sink_chunks else codecs.history


def is_kept(window: Window, index: int, num_committed: int) -> bool:
    """Whether the window keeps chunk `index` after so many commits."""
    return index < window.sink_chunks or index >= num_committed - window.recent_chunks


def simulated_peak(window: Window, codecs: RoleCodecs, chunk_tokens: int, num_commits: int) -> int:
    """Most pages of one table that exist at any time while chunk after chunk is committed."""
    held: dict[int, str] = {}
    peak = 0
    for new in range(num_commits):
        kept = {index for index in [*held, new] if is_kept(window, index, new + 1)}
        written = {new: codecs.newest or settled_codec(codecs, window, new)}
        if new - 1 in held and new - 1 in kept and held[new - 1] != settled_codec(codecs, window, new - 1):
            written[new - 1] = settled_codec(codecs, window, new - 1)
        both = [*held.values(), *written.values()]  # what is read and what is written exist together
        peak = max(peak, sum(table_pages(chunk_tokens, codec) for codec in both))
        held = {index: codec for index, codec in {**held, **written}.items() if index in kept}
    return peak
