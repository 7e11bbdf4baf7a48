"""Dense attention over sequences of different lengths, packed one after the other, and its canonical result.

Libraries differ in what they return as log-sum-exp:

    flash-attn 2            [H, T], natural log, +inf where there are no keys
    flash-attn 3, 4         [H, T], natural log, -inf
    xformers                [B, H, M], with grouped queries [B, Hkv, G, M]
    torch's CUDA flash      [H, T]; older releases [B, H, longest], padded
    torch's efficient       [B, H, M], M padded to a multiple of 32
    canonical (here)        [T, H] float32, natural log, no keys at all: out 0, lse -inf

Every adapter in this folder converts at its edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ragged:
    """How packed queries and packed keys are cut into sequences; made once per step."""

    query_lengths: tuple[int, ...]
    key_lengths: tuple[int, ...]
    query_starts: Tensor
    """int32 [E + 1], on the device."""
    key_starts: Tensor

    @staticmethod
    def of(query_lengths: Sequence[int], key_lengths: Sequence[int], device: torch.device) -> Ragged:
        """Sequence e has query_lengths[e] queries, which see key_lengths[e] keys."""
        starts = [
            torch.tensor([0, *accumulate(lengths)], dtype=torch.int32) for lengths in (query_lengths, key_lengths)
        ]
        return Ragged(tuple(query_lengths), tuple(key_lengths), *(start.to(device) for start in starts))

    @property
    def max_queries(self) -> int:
        """Most queries of one sequence."""
        return max(self.query_lengths, default=0)

    @property
    def max_keys(self) -> int:
        """Most keys of one sequence."""
        return max(self.key_lengths, default=0)

    def slices(self) -> list[tuple[slice, slice]]:
        """(queries, keys) of each sequence in the packed tensors."""
        queries, keys = ([0, *accumulate(lengths)] for lengths in (self.query_lengths, self.key_lengths))
        return [
            (slice(queries[i], queries[i + 1]), slice(keys[i], keys[i + 1])) for i in range(len(self.query_lengths))
        ]

    def canonical(self, out_THD: Tensor, lse: Tensor) -> tuple[Tensor, Tensor]:
        """Canonical (out, lse [T, H]) from lse [H, T], or [B, H, longest] padded, and any convention for no keys."""
        if lse.dim() == 3:
            lse = torch.cat([lse[i, :, :length] for i, length in enumerate(self.query_lengths)], dim=1)
        lse_TH = lse.transpose(0, 1)
        if 0 in self.key_lengths:  # integers of the plan: no wait for the device
            for (queries, _), num_keys in zip(self.slices(), self.key_lengths, strict=True):
                if num_keys == 0:
                    out_THD[queries], lse_TH[queries] = 0.0, -torch.inf
        return out_THD, lse_TH


class DenseAttention(Protocol):
    """Attention over dense keys and values by one library."""

    name: str

    def __call__(
        self, q_THD: Tensor, k_NHD: Tensor, v_NHD: Tensor, ragged: Ragged, scale: float
    ) -> tuple[Tensor, Tensor]:
        """Each sequence's queries over its keys, without a mask: (out [T, Hq, D] like q, lse [T, Hq]), canonical."""
        ...


def missing(module: str, install: str) -> list[str]:
    """The reason if a module or one of its parents is not installed; otherwise an empty list."""
    import importlib.util

    parents = module.split(".")
    for depth in range(1, len(parents) + 1):
        if importlib.util.find_spec(".".join(parents[:depth])) is None:
            return [f"{module} is not installed ({install})"]
    return []


def device_reasons(
    device: torch.device,
    dtype: torch.dtype,
    lowest: tuple[int, int],
    highest: int = 99,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16),
) -> list[str]:
    """Why a CUDA kernel for `dtypes` and compute capabilities from `lowest` to major version `highest` cannot run."""
    if device.type != "cuda":
        return [f"it runs on cuda, not on {device.type}"]
    reasons = []
    capability = torch.cuda.get_device_capability(device)
    if capability < lowest or capability[0] > highest:
        upper = " or newer" if highest == 99 else f" to {highest}.x"
        reasons.append(f"compute capability {capability[0]}.{capability[1]}; it needs {lowest[0]}.{lowest[1]}{upper}")
    if dtype not in dtypes:
        given, *allowed = (str(each).removeprefix("torch.") for each in (dtype, *dtypes))
        reasons.append(f"{given} activations; it takes {' and '.join(allowed)}")
    return reasons


def head_dim_reasons(head_dim: int, most: int) -> list[str]:
    """Why a library for multiples of 8 up to `most` cannot run; empty when it can."""
    if head_dim > most or head_dim % 8:
        return [f"head_dim {head_dim}; it takes multiples of 8 up to {most}"]
    return []
