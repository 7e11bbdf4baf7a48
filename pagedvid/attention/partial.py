"""Partial attention results and their merge.

A partial is attention over a subset of the keys: its normalised output and the log-sum-exp of its scores. Canonical
form: `out` float32 [..., T, D], `lse` float32 [..., T], natural log, scale included; no keys at all is (0, -inf). Every
backend converts to it at its edge (FlashAttention 2 returns +inf for no keys, FlashInfer base 2, xformers [B, H, M]).

Axes: T tokens, D head_dim.
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
    out = torch.zeros(out_shape, dtype=torch.float32, device=device)
    return Partial(out, torch.full(out_shape[:-1], -torch.inf, dtype=torch.float32, device=device))


def merge(a: Partial, b: Partial) -> Partial:
    """Attention over the union of two disjoint key sets. Two empty ones give an empty one. Neither input is changed."""
    total = Partial(a.out.clone(), a.lse.clone())
    merge_into(total, b)
    return total


def merge_into(total: Partial, other: Partial) -> None:
    """`merge` of the two, written into `total`."""
    lse = torch.logaddexp(total.lse, other.lse)
    is_empty = lse == -torch.inf
    weight_total = torch.exp(total.lse - lse).masked_fill_(is_empty, 0.0).unsqueeze(-1)
    weight_other = torch.exp(other.lse - lse).masked_fill_(is_empty, 0.0).unsqueeze(-1)
    total.out.mul_(weight_total).addcmul_(other.out.to(total.out.dtype), weight_other)
    total.lse.copy_(lse)
