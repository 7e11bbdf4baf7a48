"""The one call that a model makes per self-attention layer: `step.attend(layer, q, k, v, rope)`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pagedvid.attention.backend import AttentionBackend
from pagedvid.attention.commit import sampled_tokens, write_layer
from pagedvid.attention.rotation import Rotation
from pagedvid.cache.plan import StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.errors import ShapeError, StateError
from pagedvid.quant.rotary import RopeTables


class Step:
    """An open step. Ranges are packed in the order in which they were given."""

    def __init__(self, plan: StepPlan, pool: PagePool, spec: CacheSpec, backend: AttentionBackend) -> None:
        self.plan = plan
        self._pool = pool
        self._spec = spec
        self._backend = backend
        self._rotation: Rotation | None = None
        self._prepared: Any = None
        self._prepared_dtype: torch.dtype | None = None
        self._has_ended = False

    @torch.no_grad()
    def attend(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, rope: RopeTables | None = None) -> Tensor:
        """Attention of all packed tokens over history and current chunks; in a commit pass also stores k and v.

        q [T, Hq, D], k and v [T, Hkv, D], one dtype (float32 or bfloat16), packed in the order of the ranges; before or
        after rotary embedding as `CacheSpec.keys_arrive` says. Returns [T, Hq, D] in that dtype. `rope` should be the
        same object in all layers, or its tables are made anew; None: keys have no positions. No gradient flows through.
        Raises ShapeError, NonFiniteError (a commit is rolled back by it) and StateError.
        """
        if self._has_ended:
            raise StateError("this step has ended; its pages may belong to others by now. Open a new step.")
        self._check(layer, q_THD, k_THD, v_THD)
        rotation = self._rotation_for(rope, q_THD.dtype)
        out = self._backend.attend(self._prepared, layer, q_THD, k_THD, v_THD)
        for range_ in self.plan.ranges:
            tokens = slice(range_.start, range_.stop)
            for pending in range_.writes:
                q = rotation.rotated(q_THD, sampled_tokens(range_).to(q_THD.device))
                k = rotation.plain(k_THD, tokens)
                write_layer(self._pool, self._spec, pending, layer, q, k, v_THD[tokens], rope)
        return out

    def end(self) -> None:
        """No `attend` after this; called when the step's block is left."""
        self._has_ended = True

    def _rotation_for(self, rope: RopeTables | None, dtype: torch.dtype) -> Rotation:
        if self._rotation is None or self._rotation.rope is not rope or self._prepared_dtype != dtype:
            self._rotation = Rotation.of(self.plan, self._spec, rope, self._pool.device)
            self._prepared = self._backend.prepare(self.plan, self._rotation, dtype)
            self._prepared_dtype = dtype
        return self._rotation

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
