"""What the two GPU backends share: everything but how pages are read.

    current    dense keys of the step, and a text's    the fastest library that can run (providers/)
    history    pages                                   chunk by chunk: decode, library, merge (chunk_scratch.py);
                                                       "fused" reads most codecs in one kernel instead
    projected  another view of the same keys           projected_history.py
    store      triton_store.py

A step's tables are made once (step_tables.py), buffers are reused, and nothing between the first launch of a layer and
its last looks at the device.

Axes: T packed tokens, H KV heads, Hq query heads, n keys, D head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pagedvid.attention.chunk_scratch import ChunkScratch
from pagedvid.attention.dense.choice import choose_provider, provider_reasons
from pagedvid.attention.dense.ragged import DenseAttention
from pagedvid.attention.kernels.merge import corrected_merge, merge
from pagedvid.attention.page_kernels import KernelBook
from pagedvid.attention.projected_history import Projected
from pagedvid.attention.projection import StepProjection
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.sources import Sources, context_keys
from pagedvid.attention.step_tables import History, TableCache, histories
from pagedvid.attention.store import LayerStore
from pagedvid.attention.tile import Context
from pagedvid.attention.triton_store import TritonStore
from pagedvid.cache.plan import StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.assignment import KINDS
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.channel.kernels.layout import head_dim_reasons
from pagedvid.rotary.axis_tables import Angles
from pagedvid.rotary.kernels import rows_contiguous, turned

OLDEST_CAPABILITY = (8, 0)
"""BF16 on tensor cores."""
Work = TypeVar("Work")
"""What a backend prepares for a history."""
Total = tuple[Tensor, Tensor]
"""A running partial: out [T, Hq, D], lse float32 [T, Hq]."""


def unsupported_reasons(spec: CacheSpec, device: torch.device) -> list[str]:
    """Why the GPU backends cannot run here; empty when they can."""
    if device.type != "cuda":
        return [f"it runs on cuda, not on {device.type}"]
    reasons = head_dim_reasons(spec.head_dim)
    by_provider = provider_reasons(device, torch.bfloat16, spec.head_dim)
    if all(by_provider.values()):
        reasons += [f"{name}: {', '.join(why)}" for name, why in by_provider.items()]
    if torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        reasons.append("kernels need compute capability 8.0 or newer")
    return reasons


@dataclass(frozen=True)
class Prepared(Generic[Work]):
    """A step in a rotary view."""

    rotation: Rotation
    angles: Angles | None
    """[T, D/2] of all packed tokens; None when queries and keys arrive turned, or never turn."""
    sources: Sources
    histories: list[tuple[History, Work]]
    dense: DenseAttention


class TritonBackend(ABC, Generic[Work]):
    """See the module docstring. `scratch_bytes` is not used: a GPU is not kept busy by a few heads of a chunk."""

    name: str

    def __init__(self, pool: PagePool, spec: CacheSpec, book: CodecBook, scratch_bytes: int) -> None:
        kernels = KernelBook(book.page, pool.device)
        for codecs in spec.codecs.all():  # now, not in the middle of the first steps
            for kind, layer in product(KINDS, range(spec.num_layers)):
                kernels.of(book.codec(codecs.of(kind, layer), kind, layer, slice(0, spec.num_kv_heads)))
        self.store: LayerStore = TritonStore(pool, spec, book, kernels)
        self._pool = pool
        self._spec = spec
        self._book = book
        self._scratch = ChunkScratch(pool, spec, book, kernels)
        self._tables = TableCache()
        self._dense: dict[torch.dtype, DenseAttention] = {}

    def prepare(
        self, plan: StepPlan, view: Rotation | StepProjection, dtype: torch.dtype, context_tokens: Sequence[int] = ()
    ) -> Prepared[Work] | Projected:
        """See `AttentionBackend.prepare`."""
        device = self._pool.device
        rope = view.rope if isinstance(view, Rotation) else None

        def make() -> tuple[Sources, list[tuple[History, Work]]]:
            found = histories(plan, self._spec, rope, device)
            return Sources.of(plan, context_tokens, device), [(history, self._cut(history, dtype)) for history in found]

        sources, made = self._tables.find(plan, rope, (dtype, *context_tokens), make)
        if dtype not in self._dense:
            self._dense[dtype] = choose_provider(device, dtype, self._spec.head_dim)
        dense = self._dense[dtype]
        if isinstance(view, StepProjection):
            return Projected.of(plan, view, sources, [history for history, _ in made], dense)
        turns = view.cos is not None and view.sin is not None and not view.arrive_rotated
        angles = (view.cos[:, 0], view.sin[:, 0]) if turns and view.cos is not None and view.sin is not None else None
        return Prepared(view, angles, sources, made, dense)

    def attend(
        self,
        prepared: Prepared[Work] | Projected,
        layer: int,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        context: Context = (),
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        if isinstance(prepared, Projected):
            return prepared.attend(self._scratch, self._spec.scale, layer, q_THD, k_THD, v_THD, context)
        rope, sources, scale = prepared.rotation.rope, prepared.sources, self._spec.scale
        if rope is not None and (prepared.angles is not None or rope.layout != "half"):
            q, k = (turned(rows_contiguous(x), rope.layout, prepared.angles) for x in (q_THD, k_THD))
        else:
            q, k = q_THD.contiguous(), k_THD.contiguous()
        v = v_THD.contiguous()
        if sources.current_keys is not None:
            k, v = k[sources.current_keys], v[sources.current_keys]
        total = prepared.dense(q, k, v, sources.current, scale)
        if not self._merges_once(prepared, layer):
            total = total[0].float(), total[1]
        if sources.context is not None:
            keys, values = context_keys(context)
            keys = prepared.rotation.in_page_order(keys).contiguous()
            merge(total, prepared.dense(q, keys, values, sources.context, scale))
        for history, work in prepared.histories:
            self._attend_history(prepared, history, work, layer, q, total)
        return total[0].to(q_THD.dtype)

    @abstractmethod
    def _cut(self, history: History, dtype: torch.dtype) -> Work:
        """What `_attend_history` needs of a history in all layers."""

    def _merges_once(self, prepared: Prepared[Work], layer: int) -> bool:
        """Whether all of history is merged at once; a partial that is merged more often is kept in float32."""
        return not prepared.histories and prepared.sources.context is None

    def _attend_history(
        self, prepared: Prepared[Work], history: History, work: Work, layer: int, q_THD: Tensor, total: Total
    ) -> None:
        """Merges attention over all chunks of a history into `total`, corrected: here chunk by chunk."""
        noise_q: Tensor | None = None
        for number, tokens in enumerate(history.queries):
            keys, values = self._scratch.decode(history, number, layer, q_THD.dtype)
            partial = prepared.dense(q_THD[tokens], keys, values, history.sequences[number], self._spec.scale)
            noise = self._scratch.noise(history, number, layer)
            if noise_q is None:
                noise_q = q_THD if noise is None else noise.along(q_THD)
            corrected_merge((total[0][tokens], total[1][tokens]), partial, noise_q[tokens], self._spec.scale, noise)
