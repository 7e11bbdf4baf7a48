"""Spends a number of bits: which rung stores the keys and the values of every head, and how far each head looks back.

One item per (layer, KV head); a choice is (rung of the keys, rung of the values, look-back), its error the sum of the
three errors of the profile, its bytes those of the head's pages in all chunks that it keeps of a full window. So bits
and look-back compete for the same bytes (solver.py).

Errors of different tables are added up as if they were independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from pagedvid.budgets import LOOK_BACKS
from pagedvid.budgets.profile import Profile
from pagedvid.budgets.solver import Choices, allocate
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.errors import ConfigError


@dataclass(frozen=True)
class HeadStorage:
    """How one KV head of one layer is stored."""

    keys: str
    """Name of a codec, a rung of the ladder."""
    values: str
    recent_chunks: int
    """It keeps the newest chunks, as many as this."""
    keeps_sinks: bool


@dataclass(frozen=True)
class Spending:
    """What every head was given."""

    heads: tuple[tuple[HeadStorage, ...], ...]
    """By layer, then by KV head."""
    window: tuple[int, bool]
    """(newest chunks, whether sinks are kept) of a head that keeps the whole window."""
    num_bytes: int
    """Of the pages of a full window, one branch."""
    bits: float
    """The same per value of the full window."""
    error: float
    """Sum of the errors, as the profile predicts them."""


def spend(
    profile: Profile, page: PageFormat, sink_chunks: int, recent_chunks: int, bits: float, look_back: str = "uniform"
) -> Spending:
    """Spends `bits` per value of a full window of `sink_chunks` and `recent_chunks`.

    `look_back`: "uniform": every head keeps the window; "per_head": bits and look-back are decided together.
    Raises ConfigError for pages or a window that the profile was not measured on, or for bits that buy nothing.
    """
    _check(profile, page, sink_chunks, recent_chunks, look_back)
    windows = _windows(sink_chunks, recent_chunks, look_back)
    pages = [read_codec(rung).num_pages(page, profile.chunk_tokens) for rung in profile.rungs]
    kept_chunks = [recent + sinks * sink_chunks for recent, sinks in windows]
    choices = list(product(range(len(pages)), range(len(pages)), range(len(windows))))
    num_bytes = tuple(page.num_bytes * (pages[k] + pages[v]) * kept_chunks[w] for k, v, w in choices)
    num_heads, num_layers = profile.num_kv_heads, profile.num_layers
    num_values = 2 * page.head_dim * profile.chunk_tokens * (sink_chunks + recent_chunks) * num_heads * num_layers
    errors = _errors(profile, choices, windows)
    chosen = allocate([Choices(num_bytes, each) for each in errors], int(bits * num_values / 8))
    stored = [_storage(profile.rungs, windows, choices[number]) for number in chosen]
    spent = sum(num_bytes[number] for number in chosen)
    return Spending(
        tuple(tuple(stored[first : first + num_heads]) for first in range(0, len(stored), num_heads)),
        (recent_chunks, True),
        spent,
        8 * spent / num_values,
        sum(each[number] for each, number in zip(errors, chosen, strict=True)),
    )


def _windows(sink_chunks: int, recent_chunks: int, look_back: str) -> list[tuple[int, bool]]:
    """The look-backs to choose from: (newest chunks, whether sinks are kept)."""
    if look_back == "uniform":
        return [(recent_chunks, True)]
    with_sinks = (False, True) if sink_chunks else (True,)
    return [(recent, sinks) for recent in range(1, recent_chunks + 1) for sinks in with_sinks]


def _errors(
    profile: Profile, choices: Sequence[tuple[int, int, int]], windows: Sequence[tuple[int, bool]]
) -> list[tuple[float, ...]]:
    """The error of every choice, head by head, layer by layer."""
    k, v, w = torch.tensor(choices, dtype=torch.int64).unbind(1)
    total = profile.keys_PLHR.double().mean(0)[..., k] + profile.values_PLHR.double().mean(0)[..., v]
    if len(windows) > 1:  # else it is the whole one, which leaves out nothing
        window_LHN = torch.stack([_window_error(profile, *each) for each in windows], dim=-1)
        total += window_LHN.double()[..., w]
    errors: list[list[float]] = total.flatten(0, 1).tolist()
    return [tuple(each) for each in errors]


def _window_error(profile: Profile, recent_chunks: int, keeps_sinks: bool) -> Tensor:
    """[L, H]."""
    return profile.windows_PLH2W.mean(0)[:, :, int(keeps_sinks), recent_chunks - 1]


def _storage(rungs: Sequence[str], windows: Sequence[tuple[int, bool]], choice: tuple[int, int, int]) -> HeadStorage:
    keys, values, window = choice
    return HeadStorage(rungs[keys], rungs[values], *windows[window])


def _check(profile: Profile, page: PageFormat, sink_chunks: int, recent_chunks: int, look_back: str) -> None:
    if look_back not in LOOK_BACKS:
        raise ConfigError(f"look_back is {look_back!r}; allowed are {', '.join(LOOK_BACKS)}")
    differing = {} if page.rows == profile.page_rows else {"page_rows": (profile.page_rows, page.rows)}
    if look_back == "per_head":
        given = {"sink_chunks": sink_chunks, "recent_chunks": recent_chunks}
        differing |= {n: (getattr(profile, n), each) for n, each in given.items() if getattr(profile, n) != each}
    if look_back == "per_head" and not profile.has_windows:
        raise ConfigError(
            "the profile's videos were too short to tell what a shorter look-back costs; measure it on longer ones "
            f"(more than {profile.sink_chunks + profile.recent_chunks} chunks), or set look_back to uniform"
        )
    if differing:
        said = ", ".join(f"{name} {was} (here {here})" for name, (was, here) in differing.items())
        raise ConfigError(
            f"the profile was measured with {said}; give the cache the same, or measure again with `pagedvid calibrate`"
        )
