"""The one call that a model makes per self-attention layer: `step.attend(layer, q, k, v, rope)`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagedvid.attention.backend import AttentionBackend
from pagedvid.attention.commit import write_layer
from pagedvid.cache.plan import StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.errors import ShapeError, StateError
from pagedvid.quant.rotary import RopeTables, rotate, to_half_layout, unrotate


@dataclass
class _Tables:
    """What a rotary provider means for this step."""

    rope: RopeTables | None
    cos: Tensor | None
    """float32 [T, 1, D/2] of all packed tokens."""
    sin: Tensor | None
    prepared: Any


class Step:
    """An open step. Ranges are packed in the order in which they were given."""

    def __init__(self, plan: StepPlan, pool: PagePool, spec: CacheSpec, backend: AttentionBackend) -> None:
        self.plan = plan
        self._pool = pool
        self._spec = spec
        self._backend = backend
        self._tables: _Tables | None = None
        self._has_ended = False

    def attend(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, rope: RopeTables | None = None) -> Tensor:
        """Attention of all packed tokens over history and current chunks; in a commit pass also stores k and v.

        q [T, Hq, D], k and v [T, Hkv, D], one dtype (float32 or bfloat16), packed in the order of the ranges; before or
        after rotary embedding as `CacheSpec.keys_arrive` says. Returns [T, Hq, D] in that dtype. `rope` must be the
        same object in all layers; None: keys have no positions.
        Raises ShapeError, NonFiniteError (a commit is rolled back by it) and StateError.
        """
        if self._has_ended:
            raise StateError("this step has ended; its pages may belong to others by now. Open a new step.")
        self._check(layer, q_THD, k_THD, v_THD)
        tables = self._tables_for(rope, q_THD.dtype)
        q_rotated, k_rotated, k_plain = self._both_forms(q_THD, k_THD, tables)
        out = self._backend.attend(tables.prepared, layer, q_rotated, k_rotated, v_THD)
        for range_ in self.plan.ranges:
            tokens = slice(range_.start, range_.stop)
            for pending in range_.writes:
                write_layer(
                    self._pool, self._spec, pending, layer, q_rotated[tokens], k_plain[tokens], v_THD[tokens], rope
                )
        return out

    def end(self) -> None:
        """No `attend` after this; called when the step's block is left."""
        self._has_ended = True

    def _both_forms(self, q: Tensor, k: Tensor, tables: _Tables) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys, keys before rotary embedding; all in half layout."""
        if tables.rope is None or tables.cos is None or tables.sin is None:
            return q, k, k
        q, k = to_half_layout(q, tables.rope.layout), to_half_layout(k, tables.rope.layout)
        if self._spec.keys_arrive == "rotated":
            return q, k, unrotate(k.float(), tables.cos, tables.sin) if self.plan.pending else k
        return (
            rotate(q.float(), tables.cos, tables.sin).to(q.dtype),
            rotate(k.float(), tables.cos, tables.sin).to(k.dtype),
            k,
        )

    def _tables_for(self, rope: RopeTables | None, dtype: torch.dtype) -> _Tables:
        if self._tables is None or self._tables.rope is not rope:
            cos, sin = self._packed_tables(rope)
            self._tables = _Tables(rope, cos, sin, self._backend.prepare(self.plan, rope, dtype))
        return self._tables

    def _packed_tables(self, rope: RopeTables | None) -> tuple[Tensor | None, Tensor | None]:
        if rope is None:
            return None, None
        tables = [rope.tables(range_.first_token, range_.num_tokens) for range_ in self.plan.ranges]
        expected = self._spec.head_dim // 2
        for cos, sin in tables:
            if cos.shape[-1] != expected or sin.shape[-1] != expected:
                raise ShapeError(
                    f"rotary tables have {cos.shape[-1]} columns; head_dim {self._spec.head_dim} needs {expected} "
                    "(channels that do not turn have cos 1 and sin 0)"
                )
        cos, sin = (torch.cat([table[i] for table in tables]).unsqueeze(1).to(self._pool.device) for i in (0, 1))
        return cos, sin

    def _check(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> None:
        spec, num_tokens = self._spec, self.plan.num_tokens
        if not 0 <= layer < spec.num_layers:
            raise ShapeError(f"layer {layer} does not exist; the cache has layers 0 to {spec.num_layers - 1}")
        for name, x, heads in (("q", q, spec.query_heads), ("k", k, spec.num_kv_heads), ("v", v, spec.num_kv_heads)):
            expected = (num_tokens, heads, spec.head_dim)
            if tuple(x.shape) != expected:
                raise ShapeError(
                    f"{name} has shape {tuple(x.shape)}; this step's packed tokens x heads x head_dim are {expected}"
                )
            if x.dtype != q.dtype or x.dtype not in (torch.float32, torch.bfloat16):
                raise ShapeError(f"{name} is {x.dtype}; q, k and v must share one of torch.float32, torch.bfloat16")
            if x.device.type != self._pool.device.type:
                raise ShapeError(f"{name} is on {x.device}, the pool on {self._pool.device}; move one of them")
