"""Spends a number of bits per value by a profile's error curves: by head, by layer, or by head inside each layer.

By head is what the package does (pagedvid/budgets/spend.py); the others show what it gains by that. All are solved by
the same solver under the same number of bytes.

Axes: 2 kinds, keys before values; N items; L layers; H KV heads; R rungs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pagedvid.budgets.profile import Profile
from pagedvid.budgets.solver import Choices, allocate
from pagedvid.budgets.spend import HeadStorage, spend
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.window import Window
from pagedvid.codecs.registry import read_codec

Heads = Sequence[Sequence[HeadStorage]]
"""How every head is stored, by layer."""


@dataclass(frozen=True)
class Spender:
    """Spends on the chunks of one model."""

    profile: Profile
    shape: KVShape
    """With the pages to use, which may differ from those of the profile where all heads keep the window."""
    window: Window

    def by_head(self, bits: float, look_back: str = "uniform") -> Heads:
        """All heads compete; with `look_back` "per_head", for look-back, too. Raises ConfigError as `spend`."""
        window = (self.window.sink_chunks, self.window.recent_chunks)
        return spend(self.profile, self.shape.page, *window, bits, look_back).heads

    def by_layer(self, bits: float) -> Heads:
        """All layers compete; the heads of a layer share their rungs. Raises ConfigError for too few bits."""
        num_heads = self.shape.num_kv_heads
        chosen_2L = self._allocate(self._errors_2LHR.sum(2), num_heads, self._budget_bytes(bits))
        return self._stored(chosen_2L.unsqueeze(2).expand(-1, -1, num_heads))

    def heads_in_layers(self, bits: float) -> Heads:
        """The heads of a layer compete; every layer has as many bytes. Raises ConfigError for too few bits."""
        budget_bytes = self._budget_bytes(bits) // self.shape.num_layers
        layers = [self._allocate(errors_2HR, 1, budget_bytes) for errors_2HR in self._errors_2LHR.unbind(1)]
        return self._stored(torch.stack(layers, dim=1))

    def without_mean(self) -> Spender:
        """The same without the rung of no pages."""
        profile, keys, values = self.profile, self.profile.keys_PLHR[..., 1:], self.profile.values_PLHR[..., 1:]
        shorter = replace(profile, rungs=profile.rungs[1:], keys_PLHR=keys, values_PLHR=values)
        return replace(self, profile=shorter)

    @property
    def _errors_2LHR(self) -> Tensor:
        """Means over the prompts."""
        return torch.stack([self.profile.keys_PLHR, self.profile.values_PLHR]).mean(1)

    def _allocate(self, errors_2NR: Tensor, num_tables: int, budget_bytes: int) -> Tensor:
        """The rung of each item of `num_tables` tables, [2, N]."""
        num_tokens, page = self.profile.chunk_tokens, self.shape.page
        num_pages = [read_codec(rung).num_pages(page, num_tokens) for rung in self.profile.rungs]
        num_bytes = tuple(num_tables * page.num_bytes * each for each in num_pages)
        items = [Choices(num_bytes, tuple(errors)) for errors in errors_2NR.flatten(0, 1).tolist()]
        return torch.tensor(allocate(items, budget_bytes)).view(errors_2NR.shape[:2])

    def _budget_bytes(self, bits: float) -> int:
        """Of one chunk."""
        shape = self.shape
        return int(bits * 2 * self.profile.chunk_tokens * shape.num_tables * shape.head_dim / 8)

    def _stored(self, chosen_2LH: Tensor) -> Heads:
        rungs, window = self.profile.rungs, (self.window.recent_chunks, True)
        layers = zip(*chosen_2LH.tolist(), strict=True)
        return [
            [HeadStorage(rungs[key], rungs[value], *window) for key, value in zip(keys, values, strict=True)]
            for keys, values in layers
        ]
