"""How some heads of an axis are indexed: by a slice, which gives a view, where they are neighbours.

Heads that share a codec may be any of a layer's. All functions take them in ascending order, each once.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from pagedvid.codecs.assignment import Heads, are_neighbours

HeadIndex = slice | Tensor
"""Heads of an axis: neighbours, or their numbers, int64."""


@cache
def index_of(heads: Heads, device: torch.device) -> HeadIndex:
    """The index of these heads; numbers are copied to the device once."""
    if are_neighbours(heads):
        return slice(heads[0], heads[-1] + 1)
    with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
        return torch.tensor(heads, dtype=torch.int64, device=device)


@cache
def index_among(heads: Heads, others: Heads, device: torch.device) -> HeadIndex:
    """The index of heads in an axis of others, which include them."""
    places = {head: place for place, head in enumerate(others)}
    return index_of(tuple(places[head] for head in heads), device)


def query_heads(heads: Heads, group: int) -> Heads:
    """The query heads of KV heads that serve `group` of them each."""
    return tuple(head * group + i for head in heads for i in range(group))
