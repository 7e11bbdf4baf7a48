"""What the two GPU backends share: everything but how pages are read.

    current    dense keys of the step, and a text's    the fastest library that can run (providers/)
    history    pages                                   "fused": one kernel, "scratch": decode, library, merge
    store      triton_store.py

A step's tables are made once (step_tables.py), buffers are reused, and nothing between the first launch of a layer and
its last looks at the device. Chunks in codecs that kernels do not read (klt, token, hadamard, codecs from outside) are
decoded by PyTorch operations on the device, one chunk at a time.

Axes: T packed tokens, H KV heads, Hq query heads, n keys, D head_dim.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Generic, TypeVar

import torch
from torch import Tensor

from pagedvid.attention.commit import LayerStore
from pagedvid.attention.kernels import layout
from pagedvid.attention.kernels.layout import PageLayout, layout_of
from pagedvid.attention.kernels.merge import merge
from pagedvid.attention.kernels.rotate import turned
from pagedvid.attention.kernels.work import Noise
from pagedvid.attention.noise import key_noise
from pagedvid.attention.projection import StepProjection
from pagedvid.attention.providers.choice import choose_provider, provider_reasons
from pagedvid.attention.providers.ragged import DenseAttention, Ragged
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.step_tables import Angles, History, TableCache, histories
from pagedvid.attention.tile import Context
from pagedvid.attention.triton_store import TritonStore
from pagedvid.cache.plan import StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.errors import BackendError
from pagedvid.page_format import is_quantized
from pagedvid.quant.book import CodecBook
from pagedvid.quant.correction import QuerySquares
from pagedvid.quant.rotary import rotate

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
    reasons = [reason for reason in layout.unsupported_reasons(spec.shape.page, "bf16") if "head_dim" in reason]
    by_provider = provider_reasons(device, torch.bfloat16, spec.head_dim)
    if all(by_provider.values()):
        reasons += [f"{name}: {', '.join(why)}" for name, why in by_provider.items()]
    if torch.cuda.get_device_capability(device) < OLDEST_CAPABILITY:
        reasons.append("kernels need compute capability 8.0 or newer")
    return reasons


@dataclass(frozen=True)
class Prepared(Generic[Work]):
    """A step in one view."""

    plan: StepPlan
    rotation: Rotation
    angles: Angles | None
    """[T, D/2] of all packed tokens; None when queries and keys arrive turned, or never turn."""
    current: Ragged
    current_keys: Tensor | None
    """Packed tokens of every range's current keys; None: each range sees itself alone."""
    context: Ragged | None
    histories: list[tuple[History, Work]]
    dense: DenseAttention


class TritonBackend(ABC, Generic[Work]):
    """See the module docstring. `scratch_bytes` is not used: a GPU is not kept busy by a few heads of a chunk."""

    name = "triton"
    merges_often = True
    """Whether a history is merged chunk by chunk: a partial that is merged more than once is kept in float32."""

    def __init__(self, pool: PagePool, spec: CacheSpec, book: CodecBook, scratch_bytes: int) -> None:
        self.store: LayerStore = TritonStore(pool, spec, book)
        self._pool = pool
        self._spec = spec
        self._book = book
        self._tables = TableCache()
        self._dense: dict[torch.dtype, DenseAttention] = {}
        self._buffers: dict[str, Tensor] = {}

    @property
    def group(self) -> int:
        """Query heads per KV head."""
        return self._spec.query_heads // self._spec.num_kv_heads

    def prepare(
        self, plan: StepPlan, view: Rotation | StepProjection, dtype: torch.dtype, context_tokens: Sequence[int] = ()
    ) -> Prepared[Work]:
        """See `AttentionBackend.prepare`. Raises BackendError for a projection."""
        if isinstance(view, StepProjection):
            raise BackendError(f"backend {self.name!r} does not read keys through projections; choose backend 'torch'")
        device = self._pool.device

        def make() -> tuple[list[tuple[History, Work]], Ragged, Tensor | None, Ragged | None]:
            lengths = [range_.num_tokens for range_ in plan.ranges]
            seen = [sum(lengths[number] for number in range_.current) for range_ in plan.ranges]
            context = Ragged.of(lengths, context_tokens, device) if any(context_tokens) else None
            found = histories(plan, self._spec, view.rope, dtype, device)
            made = [(history, self._cut(history, dtype)) for history in found]
            return made, Ragged.of(lengths, seen, device), _current_keys(plan, device), context

        made, current, current_keys, context = self._tables.find(plan, view.rope, (dtype, *context_tokens), make)
        turns = view.cos is not None and view.sin is not None and not view.arrive_rotated
        angles = (view.cos[:, 0], view.sin[:, 0]) if turns and view.cos is not None and view.sin is not None else None
        if dtype not in self._dense:
            self._dense[dtype] = choose_provider(device, dtype, self._spec.head_dim)
        return Prepared(plan, view, angles, current, current_keys, context, made, self._dense[dtype])

    def attend(
        self, prepared: Prepared[Work], layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, context: Context = ()
    ) -> Tensor:
        """See `AttentionBackend.attend`."""
        rope = prepared.rotation.rope
        q, k, v = q_THD.contiguous(), k_THD.contiguous(), v_THD.contiguous()
        if rope is not None and (prepared.angles is not None or rope.layout != "half"):
            q, k = (turned(x, rope.layout, prepared.angles) for x in (q, k))
        keys, values = (k, v) if prepared.current_keys is None else (k[prepared.current_keys], v[prepared.current_keys])
        scale = self._spec.scale
        total = prepared.dense(q, keys, values, prepared.current, scale)
        layouts = [self._layouts(history, layer) for history, _ in prepared.histories]
        if self.merges_often or len(layouts) > 1 or None in layouts or prepared.context is not None:
            total = total[0].float(), total[1]
        if prepared.context is not None:
            context_keys, context_values = self._context(prepared, context)
            merge(total, prepared.dense(q, context_keys, context_values, prepared.context, scale))
        for (history, work), pair in zip(prepared.histories, layouts, strict=True):
            if pair is None:
                self._attend_decoded(prepared, history, layer, q, total)
            else:
                self._attend_history(prepared, history, work, layer, q, pair, total)
        return total[0].to(q_THD.dtype)

    @abstractmethod
    def _cut(self, history: History, dtype: torch.dtype) -> Work:
        """What `_attend_history` needs of a history in all layers."""

    @abstractmethod
    def _attend_history(
        self,
        prepared: Prepared[Work],
        history: History,
        work: Work,
        layer: int,
        q_THD: Tensor,
        layouts: tuple[PageLayout, PageLayout],
        total: Total,
    ) -> None:
        """Merges attention over all chunks of a history into `total`, corrected."""

    def noise(self, history: History, layer: int, codec: str) -> Noise | None:
        """What is corrected of a layer's keys, for all of a history's reads."""
        if self._spec.correction == "off" or not is_quantized(codec):
            return None
        by_variance = self._spec.correction == "variance"
        if by_variance and history.variance is None:  # nothing is known to correct, as in KeyNoise.bias
            return None
        return Noise(
            "variance" if by_variance else "steps",
            history.angles is not None and history.turn_of(layer) is history.angles,
            None if history.alpha is None else history.alpha[layer],
            None if history.variance is None else history.variance[layer],
        )

    def buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A reused tensor; grows to the largest size asked for."""
        num_elements = torch.Size(shape).numel()
        buffer = self._buffers.get(name)
        if buffer is None or buffer.dtype != dtype or buffer.numel() < num_elements:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                buffer = self._buffers[name] = torch.empty(num_elements, dtype=dtype, device=self._pool.device)
        return buffer[:num_elements].view(shape)

    def _layouts(self, history: History, layer: int) -> tuple[PageLayout, PageLayout] | None:
        """Of keys and values; None when kernels cannot read one of them."""
        heads = slice(0, self._spec.num_kv_heads)
        keys, values = (
            layout_of(self._book.page, self._book.codec(history.codecs.of(kind, layer), kind, layer, heads))
            for kind in ("keys", "values")
        )
        return None if keys is None or values is None else (keys, values)

    def _context(self, prepared: Prepared[Work], context: Context) -> tuple[Tensor, Tensor]:
        pairs = [pair for pair in context if pair is not None and len(pair[0])]
        keys = prepared.rotation.in_page_order(torch.cat([k for k, _ in pairs]))
        return keys.contiguous(), torch.cat([v for _, v in pairs])

    def _attend_decoded(self, prepared: Prepared[Work], history: History, layer: int, q: Tensor, total: Total) -> None:
        """Chunks that no kernel reads: their codecs decode them."""
        spec, heads = self._spec, slice(0, self._spec.num_kv_heads)
        angles = history.turn_of(layer)
        rows = [0, *accumulate(read.chunk.num_tokens for read in history.reads)]
        for number, (read, range_) in enumerate(zip(history.reads, history.readers, strict=True)):
            dense, records = {}, {}
            for kind in ("keys", "values"):
                codec = self._book.codec(history.codecs.of(kind, layer), kind, layer, heads)
                records[kind] = self._pool.records[history.pages_of(number, kind, layer)]
                padded = self._book.page.padded_tokens(read.chunk.num_tokens, codec.name)
                buffer = self.buffer(kind, (spec.num_kv_heads, padded, spec.head_dim), q.dtype)
                dense[kind] = codec.decode(records[kind], read.chunk.num_tokens, buffer)
            if angles is not None:
                mine = slice(rows[number], rows[number + 1])
                dense["keys"] = rotate(dense["keys"], angles[0][mine], angles[1][mine])
            tokens = slice(range_.start, range_.stop)
            keys, values = (dense[kind].transpose(0, 1).contiguous() for kind in ("keys", "values"))
            out, lse = prepared.dense(q[tokens], keys, values, history.sequences[number], spec.scale)
            lse = lse - self._decoded_bias(history, layer, number, q[tokens], records["keys"])
            merge((total[0][tokens], total[1][tokens]), (out, lse))

    def _decoded_bias(
        self, history: History, layer: int, number: int, q: Tensor, key_records: Tensor
    ) -> Tensor | float:
        """b of one read, [T, Hq], alpha in it."""
        spec = self._spec
        codec = self._book.codec(history.codecs.of("keys", layer), "keys", layer, slice(0, spec.num_kv_heads))
        if spec.correction == "off" or not is_quantized(codec.name):
            return 0.0
        variance = None if history.variance is None else history.variance[layer, number].float()
        num_tokens = history.reads[number].chunk.num_tokens
        turns = history.angles is not None
        noise = key_noise(spec.correction, codec, key_records, variance, turns, num_tokens)
        q_HMD = q.unflatten(1, (spec.num_kv_heads, -1)).permute(1, 0, 2, 3).flatten(1, 2)
        b_HM = noise.bias(QuerySquares(q_HMD), spec.scale)
        if not isinstance(b_HM, Tensor):
            return b_HM
        if history.alpha is not None:
            b_HM = history.alpha[layer, number].unsqueeze(1) * b_HM
        return b_HM.unflatten(1, (len(q), -1)).transpose(0, 1).flatten(1)


def _current_keys(plan: StepPlan, device: torch.device) -> Tensor | None:
    """Packed tokens of the current keys that each range sees, one range after the other; None: those of the step."""
    if all(len(range_.current) == 1 for range_ in plan.ranges):
        return None
    seen = [plan.ranges[number] for range_ in plan.ranges for number in range_.current]
    return torch.cat([torch.arange(range_.start, range_.stop) for range_ in seen]).to(device)
