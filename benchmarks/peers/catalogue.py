"""The published quantizers of the comparison, with their parameters, and what a measurement has to know about each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from peers import Stored
from peers.quant_videogen import quant_videogen
from peers.turboquant import turboquant
from peers.uniform import kivi_keys, kivi_values, quarot, rtn

QVG_SPAN_RATIO = 36
"""Tokens per cluster in the paper's smallest span (9360 tokens, 256 clusters)."""
Quantize = Callable[[Tensor], Stored]
"""x [H, n, D] -> what comes back from storage."""


@dataclass(frozen=True)
class Peer:
    """A published quantizer."""

    name: str
    keys: Quantize
    values: Quantize
    keys_rotated: bool = True
    """Whether keys are stored after rotary embedding."""
    uniform: bool = True
    """Whether levels are uniform, so that there are step sizes."""
    whole_span: bool = False
    """Whether it gains from storing more than one chunk at once."""

    def quantize(self, kind: str) -> Quantize:
        """Of "keys" or "values"."""
        return self.keys if kind == "keys" else self.values


def peers(span_tokens: int, head_dim: int) -> list[Peer]:
    """All of them. `span_tokens`: how many tokens share one set of k-means clusters."""

    def both(name: str, function: Callable[..., Stored], uniform: bool = True, **how: object) -> Peer:
        return Peer(name, *[partial(function, **how)] * 2, uniform=uniform)

    rows = [both(f"RTN{bits} g{group}", rtn, bits=bits, group=group) for bits, group in ((2, 64), (2, 32), (4, 64))]
    rows += [both(f"QuaRot{bits} g64", quarot, bits=bits, group=64) for bits in (2, 4)]
    rows += [both(f"TurboQuant{bits}", turboquant, uniform=False, bits=bits) for bits in (2, 3)]
    kivi = partial(kivi_keys, bits=2, group=64), partial(kivi_values, bits=2, group=64)
    rows += [Peer("KIVI2 post", *kivi), Peer("KIVI2 pre", *kivi, keys_rotated=False)]
    clusters = min(max(2, -(-span_tokens // QVG_SPAN_RATIO)), 256)
    for stages, block, grid in ((1, 64, "ternary"), (1, 64, "asymmetric"), (4, 16, "ternary")):
        name = f"QVG{'-Pro' if stages > 1 else ''} {'tern' if grid == 'ternary' else 'asym'}"
        how = {"num_stages": stages, "block": min(block, head_dim), "grid": grid, "num_clusters": clusters}
        store = partial(quant_videogen, **how)  # type: ignore[arg-type]
        rows.append(Peer(name, store, store, keys_rotated=False, uniform=False, whole_span=True))
    return rows
