"""History in one kernel launch per combination of codecs: no scratch, and b exact for every page.

The kernel reads channel codes and raw pages. Decoding a klt page takes a transform over its frames and channels; if
every block of queries repeated it, it would cost as many operations as the attention itself. So klt pages are decoded
once, chunk by chunk, as in the backend "scratch", and so are codes with step sizes per token.
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
    """Reads history with kernels/paged_attention.py where it can, and otherwise as `TritonBackend` does."""

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
        """The work of a group, cut once for all layers."""
        heads_per_group = self.spec.query_heads // self.spec.num_kv_heads
        return group.work(
            lambda: PagedWork.cut(group.pages, group.segments[0], group.ranges, heads_per_group, Tiling.of(dtype))
        )

    def _layouts(self, group: ReadGroup, layer: int) -> tuple[PageLayout, PageLayout] | None:
        """Page layouts of keys and values; None when the kernel cannot read one of them."""
        if self.spec.head_dim > MAX_HEAD_DIM:
            return None
        codecs = self.book.pair(group.codecs, layer, slice(0, self.spec.num_kv_heads))
        keys, values = (self.book.kernels(codec, self.pool.device).fused_layout for codec in codecs)
        return None if keys is None or values is None else (keys, values)

    def _bias(self, group: ReadGroup, layer: int) -> PageBias | None:
        """The correction of a layer's keys, for all reads of a group."""
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
