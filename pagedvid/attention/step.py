"""The one call that a model makes per self-attention layer: `step.attend(layer, q, k, v, rope)`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from pagedvid.arguments import list_of, whole_number
from pagedvid.attention.backend import AttentionBackend
from pagedvid.attention.commit_correction import Writing
from pagedvid.attention.history import Context, PreparedStep
from pagedvid.attention.measure import sample_queries, sampled_offsets
from pagedvid.attention.operator import attend_in_graph, store_in_graph
from pagedvid.attention.projection import StepProjection
from pagedvid.attention.rotation import Rotation
from pagedvid.cache.plan import StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.errors import ConfigError, ShapeError, StateError
from pagedvid.handles import Compilable
from pagedvid.host_state import compiled_as, current_device, independent_of_host, plain_tensor
from pagedvid.rotary.checked import CheckedRope, require_same_rope
from pagedvid.rotary.projective import Projection
from pagedvid.rotary.tables import RopeTables

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of queries, keys and values."""


class Step(Compilable):
    """An open step. Its ranges are packed in the order in which they were given."""

    def __init__(self, plan: StepPlan, pool: PagePool, spec: CacheSpec, backend: AttentionBackend) -> None:
        """`plan`: what was reserved for the step. `pool`, `spec` and `backend` are those of the cache that opens it."""
        self.plan = plan
        self._num_tokens = plan.num_tokens
        self._is_commit = bool(plan.pending)
        self._pool = pool
        self._spec = spec
        self._backend = backend
        self._rotary: tuple[Any, Rotation, PreparedStep] | None = None
        """(what it was made from, the view, what the backend prepared for it)."""
        self._projective: dict[int, tuple[Any, StepProjection, PreparedStep]] = {}
        self._same_ropes: set[tuple[CheckedRope | None, CheckedRope | None]] = set()
        """Pairs of ropes found to give the same rotation."""
        self._has_ended = False

    @compiled_as(attend_in_graph)
    @independent_of_host
    def attend(
        self,
        layer: SupportsIndex,
        q_THD: Tensor,
        k_THD: Tensor,
        v_THD: Tensor,
        rope: RopeTables | None = None,
        *,
        projections: Sequence[Projection] = (),
        context: Context = (),
    ) -> Tensor:
        """Attention of all packed tokens over their history and current chunks; a commit pass also stores k and v.

        q [T, Hq, D], k and v [T, Hkv, D] share one dtype (float32, bfloat16 or float16) and are packed in the order of
        the ranges, before or after rotary embedding as `CacheSpec.keys_arrive` says. Returns [T, Hq, D] in that dtype.
        Pass the same `rope` object in all layers: tables are made once per object. None: keys have no positions.
        No gradient flows through. The result does not depend on strides or on PyTorch's settings (host_state.py).

        `projections`: further views of the same queries and of the same current and stored keys and values; the result
        is then [1 + projections, T, Hq, D], the rotary view first. `context`: for every range, keys and values
        [n, Hkv, D], or None, that every view sees neither rotated nor mapped, such as those of a text; they are not
        stored. Raises ShapeError, NonFiniteError (which rolls a commit back) and StateError.
        """
        self._require_open()
        layer = checked_layer(layer, self._spec.num_layers)
        q_THD, k_THD, v_THD = self._checked(q=q_THD, k=k_THD, v=v_THD)
        context = self._checked_context(context, q_THD.dtype)
        projections = _checked_projections(projections)
        made_for = (q_THD.dtype, tuple(0 if pair is None else len(pair[0]) for pair in context))
        with current_device(self._device):
            rotation, prepared = self._rotary_view(rope, *made_for)
            self._require_same_rope(layer, rotation)
            views = [self._projective_view(i, each, rotation, *made_for) for i, each in enumerate(projections)]
            outs = [
                each.attend(layer, q_THD, k_THD, v_THD, context)
                for each in (prepared, *(prepared for _, prepared in views))
            ]
            if self._is_commit:
                self._write(layer, q_THD, k_THD, v_THD, rotation, [view for view, _ in views])
            return torch.stack(outs) if projections else outs[0]

    @compiled_as(store_in_graph)
    @independent_of_host
    def store(
        self,
        layer: SupportsIndex,
        k_THD: Tensor,
        v_THD: Tensor,
        rope: RopeTables | None = None,
        *,
        q_THD: Tensor | None = None,
    ) -> None:
        """Stores k and v in a commit pass without attending, for hosts that attend themselves; in place of `attend`.

        Arguments are those of `attend`. `q_THD` [T, Hq, D]: needed for correction "measured", and used if given for
        correction_unit "page"; only the queries at the `sampled_offsets` of each range are read.
        Raises ShapeError, ConfigError without queries that are needed, NonFiniteError (the commit is rolled back by
        it) and StateError, also for a step that only reads.
        """
        self._require_open()
        if not self._is_commit:
            raise StateError("this step only reads; open a commit pass to store keys and values")
        if q_THD is None and any(pending.chunk.alpha is not None for pending in self.plan.pending):
            raise ConfigError('correction "measured" fits a factor to queries; give `q_THD`, or choose "formula"')
        layer = checked_layer(layer, self._spec.num_layers)
        k_THD, v_THD, *queries = self._checked(k=k_THD, v=v_THD, **({} if q_THD is None else {"q": q_THD}))
        with current_device(self._device):
            rotation = Rotation.of(self.plan, self._spec, rope, self._backend.store.ropes)
            self._require_same_rope(layer, rotation)
            self._write(layer, queries[0] if queries else None, k_THD, v_THD, rotation, [])

    @cached_property
    def _device(self) -> torch.device:
        return self._pool.device

    def end(self) -> None:
        """Called when the step's block is left; `attend` raises StateError from then on."""
        self._has_ended = True

    def _require_open(self) -> None:
        if self._has_ended:
            raise StateError("this step has ended; its pages may belong to others by now. Open a new step.")

    def _write(
        self, layer: int, q: Tensor | None, k: Tensor, v: Tensor, rotation: Rotation, views: Sequence[StepProjection]
    ) -> None:
        writings, by_page = [], self._spec.correction_unit == "page"
        for range_ in self.plan.ranges:
            tokens = slice(range_.start, range_.stop)
            for pending in range_.writes:
                writing = Writing(pending, None, k[tokens], v[tokens], rotation.arrival(tokens))
                if q is not None and (pending.chunk.alpha is not None or by_page):
                    sampled = range_.start + sampled_offsets(range_.num_tokens, q.device)
                    readers = rotation.as_reading(q, sampled, range_, pending)
                    projected = [sample_queries(view, range_, pending, q, sampled) for view in views]
                    writing = replace(writing, readers=readers, projected=projected)
                writings.append(writing)
        self._backend.store.write(layer, writings, rotation)
        for range_ in self.plan.ranges:
            for pending in range_.writes if range_.reads else ():  # keeps one rope per stream, not one per pass
                pending.chunk.ropes[layer] = range_.reads[0].chunk.ropes[layer]

    def _require_same_rope(self, layer: int, rotation: Rotation) -> None:
        """Raises StateError when a chunk that is read was committed under another rope."""
        for range_ in self.plan.ranges:
            for read in range_.reads:
                stored = read.chunk.ropes[layer]
                if stored is not rotation.rope and (stored, rotation.rope) not in self._same_ropes:
                    require_same_rope(rotation.rope, stored, read.chunk.position, read.chunk.num_tokens)
                    self._same_ropes.add((stored, rotation.rope))

    def _rotary_view(
        self, rope: RopeTables | None, dtype: torch.dtype, context_tokens: tuple[int, ...]
    ) -> tuple[Rotation, PreparedStep]:
        made_from = (rope, dtype, context_tokens)
        if self._rotary is None or not _is_same(self._rotary[0], made_from):
            rotation = Rotation.of(self.plan, self._spec, rope, self._backend.store.ropes)
            self._rotary = (made_from, rotation, self._backend.prepare(self.plan, rotation, dtype, context_tokens))
        return self._rotary[1], self._rotary[2]

    def _projective_view(
        self,
        slot: int,
        projection: Projection,
        rotation: Rotation,
        dtype: torch.dtype,
        context_tokens: tuple[int, ...],
    ) -> tuple[StepProjection, PreparedStep]:
        stored_layout = "half" if rotation.rope is None else rotation.rope.layout
        if projection.layout != stored_layout:
            raise ShapeError(
                f"the projection's layout is {projection.layout!r}, but keys are stored from {stored_layout!r}; "
                "give both views the same"
            )
        made_from = (projection, dtype, context_tokens)
        if slot not in self._projective or not _is_same(self._projective[slot][0], made_from):
            view = StepProjection.of(self.plan, self._spec, projection, self._device)
            prepared = self._backend.prepare(self.plan, rotation, dtype, context_tokens, view)
            self._projective[slot] = (made_from, view, prepared)
        return self._projective[slot][1:]

    def _checked_context(self, context: Context, dtype: torch.dtype) -> Context:
        """The context as plain tensors; empty when no range has any. Raises ShapeError."""
        if not isinstance(context, (list, tuple)):
            raise ShapeError(
                f"context is a {type(context).__name__}; give a list of (keys, values), one for each range"
            )
        if len(context) not in (0, len(self.plan.ranges)):
            raise ShapeError(f"context for {len(context)} ranges was given; this step has {len(self.plan.ranges)}")
        return [
            None if pair is None else self._checked_pair(number, pair, dtype) for number, pair in enumerate(context)
        ]

    def _checked_pair(self, number: int, pair: tuple[Tensor, Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise ShapeError(f"context of range {number} is a {type(pair).__name__}; give (keys, values) or None")
        keys, values = (plain_tensor(f"context of range {number}", x) for x in pair)
        expected = (self._spec.num_kv_heads, self._spec.head_dim)
        for x in (keys, values):
            if tuple(x.shape[1:]) != expected or len(x) != len(keys) or x.dtype != dtype:
                raise ShapeError(
                    f"context of range {number} has shape {tuple(x.shape)}, {x.dtype}; keys and values must both "
                    f"be tokens x {expected} in {dtype}"
                )
            self._check_device(f"context of range {number}", x)
        return keys, values

    def _checked(self, **given: Tensor) -> list[Tensor]:
        """q, k and v, each by its name, as plain tensors. Raises ShapeError."""
        spec, num_tokens = self._spec, self._num_tokens
        plain = [plain_tensor(name, x) for name, x in given.items()]
        for name, x in zip(given, plain, strict=True):
            expected = (num_tokens, spec.query_heads if name == "q" else spec.num_kv_heads, spec.head_dim)
            if tuple(x.shape) != expected:
                raise ShapeError(
                    f"{name} has shape {tuple(x.shape)}; this step's packed tokens x heads x head_dim are {expected}"
                )
            if x.dtype != plain[0].dtype or x.dtype not in DTYPES:
                raise ShapeError(f"{name} is {x.dtype}; q, k and v must share one of {', '.join(map(str, DTYPES))}")
            self._check_device(name, x)
        return plain

    def _check_device(self, name: str, x: Tensor) -> None:
        if x.device != self._device:
            raise ShapeError(f"{name} is on {x.device}, the pool on {self._device}; move one of them")


def checked_layer(layer: SupportsIndex, num_layers: int) -> int:
    """The number of a layer. Raises ShapeError for a layer that does not exist."""
    number = layer if type(layer) is int else whole_number("layer", layer)  # avoids a call in the usual case
    if not 0 <= number < num_layers:
        raise ShapeError(f"layer {number} does not exist; the cache has layers 0 to {num_layers - 1}")
    return number


def _is_same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    """Whether both were made from the same object (rope or projection) and equal settings."""
    return a[0] is b[0] and a[1:] == b[1:]


def _checked_projections(projections: object) -> list[Projection]:
    """The projections as a list. Raises ShapeError for anything else."""
    if isinstance(projections, (tuple, list)) and not projections:  # avoids a call in the usual case
        return []
    protocol: Any = Projection
    listed: list[Projection] = list_of(protocol, "projections", projections, "[projection]")
    return listed
