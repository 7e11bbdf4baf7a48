"""What the two GPU backends share: everything except how pages are read.

    current    dense keys of the step, and context     the fastest library that can run (dense/)
    history    pages                                   "scratch": chunk by chunk: decode, library, merge
                                                       "fused": most codecs in one kernel (fused_backend.py)
    projected  another view of the same keys           projected_history.py
    store      triton_store.py

A step's tables are made once (step_tables.py), buffers are reused, and nothing waits for the device between the first
and the last launch of a layer.

Axes: T packed tokens, H KV heads, Hq query heads, n keys, D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from pagedvid.attention.backend import AttentionBackend, PreparedView
from pagedvid.attention.chunk_scratch import ChunkScratch
from pagedvid.attention.dense.choice import choose_provider, provider_reasons
from pagedvid.attention.dense.ragged import DenseAttention
from pagedvid.attention.kernels.merge import corrected_merge, merge
from pagedvid.attention.projected_history import ProjectedStep
from pagedvid.attention.projection import StepProjection
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.sources import Context, Sources, context_keys
from pagedvid.attention.step_tables import ReadGroup, TableCache, read_groups
from pagedvid.attention.store import LayerStore
from pagedvid.attention.triton_store import TritonStore
from pagedvid.cache.plan import StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.triton_common import head_dim_reasons
from pagedvid.rotary.axis_tables import Angles
from pagedvid.rotary.kernels import rotated, rows_contiguous

OLDEST_CAPABILITY = (8, 0)
"""BF16 on tensor cores."""
Total = tuple[Tensor, Tensor]
"""A running partial: out [T, Hq, D], lse float32 [T, Hq]."""


class TritonBackend(AttentionBackend):
    """History chunk by chunk: decode into a scratch, the dense library, then correction and merge in one kernel.

    `scratch_bytes` is not used: a few heads of a chunk would not keep a GPU busy.
    """

    name = "scratch"

    def __init__(self, pool: PagePool, spec: CacheSpec, book: CodecBook, scratch_bytes: int) -> None:
        for codecs in spec.codecs.all():  # makes the kernels' tables now, not during the first steps
            for layer in range(spec.num_layers):
                for codec in book.pair(codecs, layer, slice(0, spec.num_kv_heads)):
                    book.kernels(codec, pool.device)
        self.store: LayerStore = TritonStore(pool, spec, book)
        self.pool = pool
        self.spec = spec
        self.book = book
        self.scratch = ChunkScratch(pool, spec, book)
        self._tables = TableCache()
        self._dense: dict[torch.dtype, DenseAttention] = {}

    @staticmethod
    @override
    def unsupported_reasons(spec: CacheSpec, device: torch.device) -> list[str]:
        if device.type != "cuda":
            return [f"it runs on cuda, not on {device.type}"]
        reasons = head_dim_reasons(spec.head_dim)
        by_provider = provider_reasons(device, torch.bfloat16, spec.head_dim)
        if all(by_provider.values()):
            reasons += [f"{name}: {', '.join(why)}" for name, why in by_provider.items()]
        if torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
            reasons.append("kernels need compute capability 8.0 or newer")
        return reasons

    @override
    def prepare(
        self, plan: StepPlan, view: Rotation | StepProjection, dtype: torch.dtype, context_tokens: Sequence[int] = ()
    ) -> RotaryStep | ProjectedStep:
        device = self.pool.device
        rope = view.rope if isinstance(view, Rotation) else None

        def make() -> tuple[Sources, list[ReadGroup]]:
            return Sources.of(plan, context_tokens, device), read_groups(plan, self.spec, rope, device)

        sources, groups = self._tables.find(plan, rope, (dtype, *context_tokens), make)
        if dtype not in self._dense:
            self._dense[dtype] = choose_provider(device, dtype, self.spec.head_dim)
        dense = self._dense[dtype]
        if isinstance(view, StepProjection):
            return ProjectedStep.of(self.scratch, self.spec.scale, plan, view, sources, groups, dense)
        return RotaryStep(self, view, _packed_angles(view), sources, groups, dense)

    def merges_once(self, step: RotaryStep, layer: int) -> bool:
        """Whether at most one partial is merged into the current one; for more, the total is kept in float32."""
        return not step.groups and step.sources.context is None

    def attend_group(self, step: RotaryStep, group: ReadGroup, layer: int, q_THD: Tensor, total: Total) -> None:
        """Merges attention over all chunks of a group into `total`, corrected."""
        q_along: Tensor | None = None
        for number, tokens in enumerate(group.queries):
            keys, values = self.scratch.decode(group, number, layer, q_THD.dtype)
            partial = step.dense(q_THD[tokens], keys, values, group.sequences[number], self.spec.scale)
            error = self.scratch.quant_error(group, number, layer)
            if q_along is None:
                q_along = q_THD if error is None else error.along(q_THD)
            corrected_merge((total[0][tokens], total[1][tokens]), partial, q_along[tokens], self.spec.scale, error)


@dataclass(frozen=True)
class RotaryStep(PreparedView):
    """A step in a rotary view."""

    backend: TritonBackend
    rotation: Rotation
    angles: Angles | None
    """[T, D/2] of all packed tokens; None when queries and keys arrive rotated, or have no positions."""
    sources: Sources
    groups: list[ReadGroup]
    dense: DenseAttention

    @override
    def attend(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, context: Context = ()) -> Tensor:
        rope, sources, scale = self.rotation.rope, self.sources, self.backend.spec.scale
        if rope is not None and (self.angles is not None or rope.layout != "half"):
            q, k = (rotated(rows_contiguous(x), rope.layout, self.angles) for x in (q_THD, k_THD))
        else:
            q, k = q_THD.contiguous(), k_THD.contiguous()
        v = v_THD.contiguous()
        if sources.current_keys is not None:
            k, v = k[sources.current_keys], v[sources.current_keys]
        total = self.dense(q, k, v, sources.current, scale)
        if not self.backend.merges_once(self, layer):
            total = total[0].float(), total[1]
        if sources.context is not None:
            keys, values = context_keys(context)
            keys = self.rotation.in_page_order(keys).contiguous()
            merge(total, self.dense(q, keys, values, sources.context, scale))
        for group in self.groups:
            self.backend.attend_group(self, group, layer, q, total)
        return total[0].to(q_THD.dtype)


def _packed_angles(view: Rotation) -> Angles | None:
    if view.cos is None or view.sin is None or view.arrive_rotated:
        return None
    return view.cos[:, 0], view.sin[:, 0]
