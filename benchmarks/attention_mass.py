"""How much attention goes to cached keys, layer by layer: exact keys against stored ones under every correction.

A `MassMeter` watches an unquantized run (`ForcedRun.generate(watch=meter)`). It commits the same keys into a second,
quantized cache, which also measures the factors alpha as any commit does, and at every denoise step of the watched
chunks compares, for the queries and current keys of that very step,

    mass = sum over cached keys of exp(score) / sum over all keys of exp(score)

with the cached keys as they were, and as they are stored: uncorrected, by the formula, by the measured correction.

Axes: E videos, H heads, T tokens of a chunk, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.attention.commit import read_layer
from pagedvid.attention.step import Step
from pagedvid.cache.chunk import Chunk
from pagedvid.cache.plan import RangePlan
from pagedvid.geometry import Window
from pagedvid.models.base import VideoModel
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.quant.codec import get_codec
from pagedvid.quant.correction import bias
from pagedvid.quant.rotary import pair_mean_square, rotate

VARIANTS = ("unquantized", "off", "formula", "measured")


@dataclass(frozen=True)
class _StoredKeys:
    """One layer of one chunk of all videos, as stored."""

    k_EHTD: Tensor
    step_square_EHD: Tensor
    alpha_EH: Tensor


class MassMeter:
    """A `Watch` for one run of `num_videos` videos; `masses` has the result."""

    def __init__(
        self, model: VideoModel, cache: PagedKVCache, window: Window, num_videos: int, watched: tuple[int, ...]
    ) -> None:
        """`cache`: a quantized cache with the correction "measured". `watched`: indices of the chunks to look at."""
        self._model = model
        self._cache = cache
        self._watched = watched
        self._streams = [cache.open(window, model.geometry.chunk_tokens) for _ in range(num_videos)]
        self._passing: list[tuple[Tensor, Tensor, Tensor]] = []
        """q, k, v of the layers of the commit pass that is under way."""
        self._exact: dict[tuple[int, int], Tensor] = {}
        """Keys before rotary embedding by (chunk index, layer), [E, H, T, D]."""
        self._sums = torch.zeros(len(VARIANTS), model.geometry.num_layers, num_videos)
        self._num_steps = 0

    def __call__(self, step: Step, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> None:
        """Sees one layer of one forward of all videos."""
        first = step.plan.ranges[0]
        if step.plan.pending:
            self._commit(first.stream.num_committed, layer, q_THD, k_THD, v_THD)
        elif first.stream.num_committed in self._watched:
            self._sums[:, layer] += self._measure(first, layer, self._split(q_THD), self._split(k_THD))
            self._num_steps += layer == 0

    @property
    def masses(self) -> Tensor:
        """Cached mass, mean over heads, queries and steps: [variants, layers, videos]."""
        return self._sums / self._num_steps

    def _commit(self, chunk_index: int, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> None:
        self._exact[chunk_index, layer] = self._split(k_THD).clone()
        self._passing.append((q_THD, k_THD, v_THD))
        if layer == self._model.geometry.num_layers - 1:
            with self._cache.commit(self._streams) as step:
                for number, (q, k, v) in enumerate(self._passing):
                    step.attend(number, q, k, v, self._model.rope)
            self._passing.clear()

    def _measure(self, plan: RangePlan, layer: int, q_EHTD: Tensor, k_EHTD: Tensor) -> Tensor:
        """[variants, E]."""
        q, scale = self._rotate(q_EHTD, plan.first_token), self._cache.spec.scale
        q_square = pair_mean_square(q)
        current = torch.logsumexp(scale * q @ self._rotate(k_EHTD, plan.first_token).mT, dim=-1)
        cached: list[list[Tensor]] = [[] for _ in VARIANTS]
        for read in plan.reads:
            exact = self._rotate(self._exact[read.chunk.index, layer], read.first_token)
            stored = self._stored(read.chunk.index, layer)
            log_mass = torch.logsumexp(scale * q @ self._rotate(stored.k_EHTD, read.first_token).mT, dim=-1)
            b = bias(q_square, stored.step_square_EHD, scale)
            cached[0].append(torch.logsumexp(scale * q @ exact.mT, dim=-1))
            cached[1].append(log_mass)
            cached[2].append(log_mass - b)
            cached[3].append(log_mass - stored.alpha_EH.unsqueeze(-1) * b)
        return torch.stack(
            [torch.sigmoid(torch.stack(parts).logsumexp(0) - current).mean(dim=(1, 2)) for parts in cached]
        )

    def _stored(self, chunk_index: int, layer: int) -> _StoredKeys:
        """What the package keeps of a chunk, read back through its own functions."""
        chunks = [stream.history("cond").chunks[chunk_index] for stream in self._streams]
        keys = [read_layer(self._cache.pool, self._cache.spec, chunk, layer)[0] for chunk in chunks]
        alphas = [chunk.alpha[layer] for chunk in chunks if chunk.alpha is not None]
        return _StoredKeys(
            torch.stack(keys), torch.stack([self._step_square(chunk, layer) for chunk in chunks]), torch.stack(alphas)
        )

    def _step_square(self, chunk: Chunk, layer: int) -> Tensor:
        """[H, D]."""
        pages = chunk.layer_pages(layer, self._cache.spec.num_kv_heads)
        records, _ = self._cache.pool.page_bytes_of(pages.ravel())
        step_square = get_codec(chunk.codec).mean_square_steps(records.unflatten(0, pages.shape), chunk.num_tokens)
        assert step_square is not None  # the cache is quantized
        return step_square

    def _rotate(self, x_EHTD: Tensor, first_token: int) -> Tensor:
        """float32; the demo model's pairs are in half layout already."""
        if self._model.rope is None:
            return x_EHTD.float()
        return rotate(x_EHTD.float(), *self._model.rope.tables(first_token, x_EHTD.shape[2]))

    def _split(self, x_THD: Tensor) -> Tensor:
        return x_THD.unflatten(0, (len(self._streams), -1)).transpose(1, 2)
