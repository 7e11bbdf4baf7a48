"""What an engine has done since it was made, counted where it happens."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Counters:
    """Totals of one engine; `EngineStats` says what each of them means."""

    num_finished: int = 0
    num_chunks_done: int = 0
    num_forks: int = 0
    num_steps: int = 0
    step_seconds: float = 0.0
    forward_seconds: float = 0.0
    num_swaps_out: int = 0
    num_swaps_in: int = 0
    swapped_out_bytes: int = 0
    swapped_in_bytes: int = 0
