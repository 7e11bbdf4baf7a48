"""History in one kernel launch per combination of codecs: no scratch, and b exact for every page.

Channel codes and raw pages are read so. A klt page comes out of a transform over its frames and channels, which every
block of queries would have to repeat, as many operations again as the attention itself; it is decoded once, chunk by
chunk, as by the backend "scratch". So are codes with step sizes by token.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.kernels.paged_attention import MAX_HEAD_DIM, paged_attention
from pagedvid.attention.kernels.work import PageBias, PagedWork, Tiling
from pagedvid.attention.step_tables import ReadGroup
from pagedvid.attention.triton_backend import RotaryStep, Total, TritonBackend
from pagedvid.codecs.channel.kernels.layout import PageLayout
from pagedvid.correction.formula import bias_source


class FusedBackend(TritonBackend):
    """See the module docstring, and kernels/paged_attention.py."""

    name = "fused"

    @override
    def merges_once(self, step: RotaryStep, layer: int) -> bool:
        fused = [self._layouts(group, layer) is not None for group in step.groups]
        return len(fused) + (step.sources.context is not None) <= 1 and all(fused)

    @override
    def attend_group(self, step: RotaryStep, group: ReadGroup, layer: int, q_THD: Tensor, total: Total) -> None:
        layouts = self._layouts(group, layer)
        if layouts is None:
            return super().attend_group(step, group, layer, q_THD, total)
        paged_attention(
            q_THD,
            *total,
            self.pool.records,
            layouts,
            replace(self._work(group, q_THD.dtype), segments=group.segments[layer]),
            self.spec.scale,
            angles=group.rotation_of(layer),
            bias=self._bias(group, layer),
            merge=True,
        )

    def _work(self, group: ReadGroup, dtype: torch.dtype) -> PagedWork:
        """Cut once for all layers."""
        heads_per_group = self.spec.query_heads // self.spec.num_kv_heads
        return group.work(
            lambda: PagedWork.cut(group.pages, group.segments[0], group.ranges, heads_per_group, Tiling.of(dtype))
        )

    def _layouts(self, group: ReadGroup, layer: int) -> tuple[PageLayout, PageLayout] | None:
        """Of keys and values; None when the kernel cannot read one of them."""
        if self.spec.head_dim > MAX_HEAD_DIM:
            return None
        codecs = self.book.pair(group.codecs, layer, slice(0, self.spec.num_kv_heads))
        keys, values = (self.book.kernels(codec, self.pool.device).fused_layout for codec in codecs)
        return None if keys is None or values is None else (keys, values)

    def _bias(self, group: ReadGroup, layer: int) -> PageBias | None:
        """What is corrected of a layer's keys, for all of a group's reads."""
        codec = group.codecs.of("keys", layer)
        source = bias_source(self.spec.correction, codec, has_rope=group.rotation is not None)
        if source is None or (source.by_variance and group.variance is None):
            return None
        return PageBias(
            "variance" if source.by_variance else "step_sizes",
            source.rotates,
            None if group.alpha is None else group.alpha[layer],
            None if group.variance is None else group.variance[layer],
        )
