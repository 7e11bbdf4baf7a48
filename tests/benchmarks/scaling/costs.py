"""Unit costs that are easy to reckon with."""

from __future__ import annotations

from scaling.limits import UnitCosts

COSTS = UnitCosts(
    encode_us=100_000,
    append_us=4000,
    row_us=3000,
    bookkeeping_us=1000,
    watching_us=200,
    hear_us=1,
    queue_us=2,
    place_us=1500,
    stats_us=1500,
    call_us=500,
    call_with_fragment_us=700,
    call_with_frames_us=2000,
    look_us=60,
    megabyte_us=10_000,
    store_bytes_per_second=4e8,
    frames_bytes=14_000_000,
    fragment_bytes=400_000,
)
