"""Spends a number of bits per value by a profile's error curves: by head, by layer, or by head inside each layer.

By head is what the package does (pagedvid/budgets/spend.py); the others show what it gains by that. All are solved by
the same solver under the same number of bytes.

Axes: 2 kinds, keys before values; N items; L layers; H KV heads; R rungs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pagedvid.budgets.profile import Profile
from pagedvid.budgets.solver import Choices, allocate
from pagedvid.budgets.spend import HeadStorage, Spending, spend
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.window import Window
from pagedvid.codecs.registry import read_codec


@dataclass(frozen=True)
class Spender:
    """Spends on the chunks of one model."""

    profile: Profile
    shape: KVShape
    """With the pages to use, which may differ from those of the profile where all heads keep the window."""
    window: Window

    def by_head(self, bits: float, look_back: str = "uniform") -> Spending:
        """All heads compete; with `look_back` "per_head", for look-back, too. Raises ConfigError as `spend`."""
        window = (self.window.sink_chunks, self.window.recent_chunks)
        return spend(self.profile, self.shape.page, *window, bits, look_back)

    def by_layer(self, bits: float) -> Spending:
        """All layers compete; the heads of a layer share their rungs. Raises ConfigError for too few bits."""
        num_heads = self.shape.num_kv_heads
        chosen_2L = self._allocate(self._errors_2LHR.sum(2), num_heads, int(bits * self._num_values / 8))
        return self._spending(chosen_2L.unsqueeze(2).expand(-1, -1, num_heads))

    def heads_in_layers(self, bits: float) -> Spending:
        """The heads of a layer compete; every layer has as many bytes. Raises ConfigError for too few bits."""
        budget_bytes = int(bits * self._num_values / 8 / self.shape.num_layers)
        layers = [self._allocate(errors_2HR, 1, budget_bytes) for errors_2HR in self._errors_2LHR.unbind(1)]
        return self._spending(torch.stack(layers, dim=1))

    def without_mean(self) -> Spender:
        """The same without the rung of no pages."""
        profile, keys, values = self.profile, self.profile.keys_PLHR[..., 1:], self.profile.values_PLHR[..., 1:]
        shorter = replace(profile, rungs=profile.rungs[1:], keys_PLHR=keys, values_PLHR=values)
        return replace(self, profile=shorter)

    @property
    def _errors_2LHR(self) -> Tensor:
        """Means over the prompts."""
        return torch.stack([self.profile.keys_PLHR, self.profile.values_PLHR]).mean(1)

    @property
    def _num_values(self) -> int:
        """Of a full window."""
        shape = self.shape
        return 2 * self.window.max_chunks * self.profile.chunk_tokens * shape.num_tables * shape.head_dim

    @property
    def _rung_bytes(self) -> list[int]:
        """Of the keys or the values of one head, in all chunks of a full window."""
        page, chunk_tokens = self.shape.page, self.profile.chunk_tokens
        num_pages = [read_codec(rung).num_pages(page, chunk_tokens) for rung in self.profile.rungs]
        return [self.window.max_chunks * page.num_bytes * each for each in num_pages]

    def _allocate(self, errors_2NR: Tensor, num_heads: int, budget_bytes: int) -> Tensor:
        """The rung of each item of so many heads, [2, N]."""
        num_bytes = tuple(num_heads * each for each in self._rung_bytes)
        items = [Choices(num_bytes, tuple(errors)) for errors in errors_2NR.flatten(0, 1).tolist()]
        return torch.tensor(allocate(items, budget_bytes)).view(errors_2NR.shape[:2])

    def _spending(self, chosen_2LH: Tensor) -> Spending:
        rungs, window = self.profile.rungs, (self.window.recent_chunks, True)
        heads = tuple(
            tuple(HeadStorage(rungs[key], rungs[value], *window) for key, value in zip(keys, values, strict=True))
            for keys, values in zip(*chosen_2LH.tolist(), strict=True)
        )
        num_bytes = sum(self._rung_bytes[rung] for rung in chosen_2LH.flatten().tolist())
        error = self._errors_2LHR.gather(-1, chosen_2LH.unsqueeze(-1)).sum()
        return Spending(heads, window, num_bytes, 8 * num_bytes / self._num_values, float(error))
