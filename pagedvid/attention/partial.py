"""Partial attention results and their merge.

A partial is attention over a subset of the keys: its normalised output and the log-sum-exp of its scores. Canonical
form: `out` float32 [..., T, D], `lse` float32 [..., T], natural log, scale included; no keys at all is (0, -inf). Every
backend converts to it at its edge (FlashAttention 2 returns +inf for no keys, FlashInfer base 2, xformers [B, H, M]).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Partial:
    """Attention over some of the keys, canonical form."""

    out: Tensor
    lse: Tensor


def empty_partial(out_shape: tuple[int, ...], device: torch.device | str = "cpu") -> Partial:
    """The neutral element of `merge`."""
    out = torch.zeros(out_shape, device=device)
    return Partial(out, torch.full(out_shape[:-1], -torch.inf, device=device))


def merge(a: Partial, b: Partial) -> Partial:
    """Attention over the union of two disjoint key sets. Two empty ones give an empty one. Neither input is changed."""
    lse = torch.logaddexp(a.lse, b.lse)
    is_empty = lse == -torch.inf
    weight_a = torch.exp(a.lse - lse).masked_fill_(is_empty, 0.0).unsqueeze(-1)
    weight_b = torch.exp(b.lse - lse).masked_fill_(is_empty, 0.0).unsqueeze(-1)
    return Partial(torch.mul(a.out, weight_a).addcmul_(b.out.to(a.out.dtype), weight_b), lse)
