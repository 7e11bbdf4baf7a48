"""History in one kernel launch per combination of codecs: no scratch, and b exact for every page."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pagedvid.attention.kernels.layout import PageLayout
from pagedvid.attention.kernels.paged_attention import paged_attention
from pagedvid.attention.kernels.work import PagedWork, Tiling
from pagedvid.attention.step_tables import History
from pagedvid.attention.triton_backend import Prepared, Total, TritonBackend


class FusedBackend(TritonBackend[PagedWork]):
    """See the module docstring, and kernels/paged_attention.py."""

    name = "fused"
    merges_often = False

    def _cut(self, history: History, dtype: torch.dtype) -> PagedWork:
        return PagedWork.cut(history.pages, history.segments[0], history.ranges, self.group, Tiling.of(dtype))

    def _attend_history(
        self,
        prepared: Prepared[PagedWork],
        history: History,
        work: PagedWork,
        layer: int,
        q_THD: Tensor,
        layouts: tuple[PageLayout, PageLayout],
        total: Total,
    ) -> None:
        codec = history.codecs.of("keys", layer)
        paged_attention(
            q_THD,
            *total,
            self._pool.records,
            layouts,
            replace(work, segments=history.segments[layer]),
            self._spec.scale,
            angles=history.turn_of(layer),
            noise=self.noise(history, layer, codec),
            merge=True,
        )
