"""History in one kernel launch per combination of codecs: no scratch, and b exact for every page.

Channel codes and raw pages are read so. A klt page comes out of a transform over its frames and channels, which every
block of queries would have to repeat, as many operations again as the attention itself; it is decoded once, chunk by
chunk, as by the backend "scratch". So are codes with steps per token.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pagedvid.attention.kernels.paged_attention import MAX_HEAD_DIM, paged_attention
from pagedvid.attention.kernels.work import Noise, PagedWork, Tiling
from pagedvid.attention.step_tables import History
from pagedvid.attention.triton_backend import Prepared, Total, TritonBackend
from pagedvid.codecs.assignment import KINDS
from pagedvid.codecs.channel.kernels.layout import PageLayout, layout_of
from pagedvid.codecs.page import is_quantized, read_codec


class FusedBackend(TritonBackend[PagedWork]):
    """See the module docstring, and kernels/paged_attention.py."""

    name = "fused"

    def _cut(self, history: History, dtype: torch.dtype) -> PagedWork:
        group = self._spec.query_heads // self._spec.num_kv_heads
        return PagedWork.cut(history.pages, history.segments[0], history.ranges, group, Tiling.of(dtype))

    def _merges_once(self, prepared: Prepared[PagedWork], layer: int) -> bool:
        fused = [self._layouts(history, layer) is not None for history, _ in prepared.histories]
        return len(fused) + (prepared.sources.context is not None) <= 1 and all(fused)

    def _attend_history(
        self,
        prepared: Prepared[PagedWork],
        history: History,
        work: PagedWork,
        layer: int,
        q_THD: Tensor,
        total: Total,
    ) -> None:
        layouts = self._layouts(history, layer)
        if layouts is None:
            return super()._attend_history(prepared, history, work, layer, q_THD, total)
        paged_attention(
            q_THD,
            *total,
            self._pool.records,
            layouts,
            replace(work, segments=history.segments[layer]),
            self._spec.scale,
            turns=history.turning_of(layer),
            noise=self._noise(history, layer),
            merge=True,
        )

    def _layouts(self, history: History, layer: int) -> tuple[PageLayout, PageLayout] | None:
        """Of keys and values; None when the kernel cannot read one of them."""
        if self._spec.head_dim > MAX_HEAD_DIM:
            return None
        heads = slice(0, self._spec.num_kv_heads)
        keys, values = (
            layout_of(self._book.page, self._book.codec(history.codecs.of(kind, layer), kind, layer, heads))
            for kind in KINDS
        )
        return None if keys is None or values is None else (keys, values)

    def _noise(self, history: History, layer: int) -> Noise | None:
        """What is corrected of a layer's keys, for all of a history's reads."""
        name = history.codecs.of("keys", layer)
        if self._spec.correction == "off" or not is_quantized(name):
            return None
        by_variance = self._spec.correction == "variance"
        if by_variance and history.variance is None:  # nothing is known to correct, as in KeyNoise.bias
            return None
        return Noise(
            "variance" if by_variance else "steps",
            history.turning is not None and not read_codec(name).stores_rotated,
            None if history.alpha is None else history.alpha[layer],
            None if history.variance is None else history.variance[layer],
        )
