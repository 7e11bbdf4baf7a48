"""Steps of a sharded cache: the attention of a rank's heads, between exchanges with the other ranks.

step.attend                       every rank has computed q, k and v of all tokens; outputs of all heads are gathered
step.split_tokens().attend        every rank has computed its own tokens: all-to-all before and after (Ulysses)

Keys and values that cannot be stored are found by the rank that holds their heads alone, while the others go on to the
next exchange. So that rank goes on, too, with zeros, and all of them raise together when the step ends (sharding.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import SupportsIndex

from torch import Tensor

from pagedvid.attention.backend import AttentionBackend
from pagedvid.attention.history import Context
from pagedvid.attention.operator import attend_in_graph, store_in_graph
from pagedvid.attention.step import Step
from pagedvid.cache.plan import StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.distributed.exchange import Exchange, piece_of
from pagedvid.distributed.heads import HeadShard
from pagedvid.errors import NonFiniteError, ShapeError
from pagedvid.handles import Compilable
from pagedvid.host_state import compiled_as, current_device, independent_of_host, plain_tensor
from pagedvid.rotary.projective import Projection
from pagedvid.rotary.tables import RopeTables


class ShardedStep(Step):
    """A step whose `attend` and `store` take all heads of all packed tokens, the same on every rank."""

    def __init__(
        self,
        plan: StepPlan,
        pool: PagePool,
        own: CacheSpec,
        backend: AttentionBackend,
        whole: CacheSpec,
        heads: HeadShard,
        exchange: Exchange,
    ) -> None:
        super().__init__(plan, pool, own, backend)
        self.failure: NonFiniteError | None = None
        """Why this rank's keys or values could not be stored."""
        self._whole, self._heads, self._exchange = whole, heads, exchange

    def split_tokens(self) -> SplitStep:
        """The step for a host whose ranks compute a part of the tokens each."""
        return SplitStep(self)

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
        """See `Step.attend`; the output is that of all heads."""
        q, k, v = self._checked_whole(self.plan.num_tokens, q=q_THD, k=k_THD, v=v_THD)
        kv_heads, group = self._heads.kv_slice(), self._whole.query_heads // self._whole.num_kv_heads
        own = q[:, self._heads.query_slice(group)], k[:, kv_heads], v[:, kv_heads]
        with current_device(self._device):
            return self._exchange.gather_heads(self._attend_own(layer, *own, rope, projections, context))

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
        """See `Step.store`."""
        given = {"k": k_THD, "v": v_THD} | ({} if q_THD is None else {"q": q_THD})
        k, v, *queries = self._checked_whole(self.plan.num_tokens, **given)
        kv_heads, group = self._heads.kv_slice(), self._whole.query_heads // self._whole.num_kv_heads
        q = queries[0][:, self._heads.query_slice(group)] if queries else None
        self._store_own(layer, k[:, kv_heads], v[:, kv_heads], rope, q)

    def attend_piece(
        self,
        layer: SupportsIndex,
        q_tHD: Tensor,
        k_tHD: Tensor,
        v_tHD: Tensor,
        rope: RopeTables | None,
        projections: Sequence[Projection],
        context: Context,
    ) -> Tensor:
        """`SplitStep.attend`."""
        given = self._checked_whole(self._piece_tokens, q=q_tHD, k=k_tHD, v=v_tHD)
        with current_device(self._device):
            q, k, v = self._exchange.heads_for_tokens(given, self.plan.num_tokens)
            return self._exchange.tokens_for_heads(self._attend_own(layer, q, k, v, rope, projections, context))

    def store_piece(
        self, layer: SupportsIndex, k_tHD: Tensor, v_tHD: Tensor, rope: RopeTables | None, q_tHD: Tensor | None
    ) -> None:
        """`SplitStep.store`."""
        given = {"k": k_tHD, "v": v_tHD} | ({} if q_tHD is None else {"q": q_tHD})
        pieces = self._checked_whole(self._piece_tokens, **given)
        with current_device(self._device):
            k, v, *queries = self._exchange.heads_for_tokens(pieces, self.plan.num_tokens)
            self._store_own(layer, k, v, rope, queries[0] if queries else None)

    @property
    def piece(self) -> slice:
        """The packed tokens that are this rank's where tokens are split."""
        return piece_of(self._exchange.rank, self.plan.num_tokens, self._exchange.num_ranks)

    @property
    def _piece_tokens(self) -> int:
        return self.piece.stop - self.piece.start

    def _attend_own(
        self,
        layer: SupportsIndex,
        q_ThD: Tensor,
        k_ThD: Tensor,
        v_ThD: Tensor,
        rope: RopeTables | None,
        projections: Sequence[Projection],
        context: Context,
    ) -> Tensor:
        if self.failure is None:
            try:
                cut = self._own_context(context)
                return super().attend(layer, q_ThD, k_ThD, v_ThD, rope, projections=projections, context=cut)
            except NonFiniteError as error:
                self.failure = error
        return q_ThD.new_zeros((1 + len(projections), *q_ThD.shape) if projections else q_ThD.shape)

    def _store_own(
        self, layer: SupportsIndex, k_ThD: Tensor, v_ThD: Tensor, rope: RopeTables | None, q_ThD: Tensor | None
    ) -> None:
        if self.failure is None:
            try:
                super().store(layer, k_ThD, v_ThD, rope, q_THD=q_ThD)
            except NonFiniteError as error:
                self.failure = error

    def _own_context(self, context: Context) -> Context:
        """Context of all heads, the same on every rank, cut to those of this one; `Step` checks what it has."""
        if not isinstance(context, (list, tuple)):
            return context
        return [
            (self._own_heads(number, pair[0]), self._own_heads(number, pair[1]))
            if isinstance(pair, (list, tuple)) and len(pair) == 2
            else pair
            for number, pair in enumerate(context)
        ]

    def _own_heads(self, number: int, x_nHD: Tensor) -> Tensor:
        """Of the context of a range. Raises ShapeError."""
        name = f"context of range {number}"
        x, expected = plain_tensor(name, x_nHD), (self._whole.num_kv_heads, self._whole.head_dim)
        if tuple(x.shape[1:]) != expected:
            raise ShapeError(f"{name} has shape {tuple(x.shape)}; keys and values must be tokens x {expected}")
        return x[:, self._heads.kv_slice()]

    def _checked_whole(self, num_tokens: int, **given: Tensor) -> list[Tensor]:
        """Tensors of all heads, each by its name, in one dtype. Raises ShapeError before any other rank waits."""
        plain = [plain_tensor(name, x) for name, x in given.items()]
        for name, x in zip(given, plain, strict=True):
            num_heads = self._whole.query_heads if name == "q" else self._whole.num_kv_heads
            expected = (num_tokens, num_heads, self._whole.head_dim)
            if tuple(x.shape) != expected or x.dtype != plain[0].dtype:
                raise ShapeError(
                    f"{name} has shape {tuple(x.shape)}, {x.dtype}; rank {self._exchange.rank} of "
                    f"{self._exchange.num_ranks} gives tokens x all heads x head_dim {expected}, all in one dtype"
                )
            self._check_device(name, x)
        return plain


class SplitStep(Compilable):
    """A step for a host that splits the packed tokens among the ranks (sequence parallelism).

    Rank r computes the tokens `tokens` of the step, and gives and gets these alone. Rotary tables and projections
    are those of all tokens, and `context` is that of all heads, the same on every rank.
    """

    def __init__(self, step: ShardedStep) -> None:
        self.step = step
        self.tokens = step.piece
        """This rank's, of all packed tokens: as many as others have, fewer on the last ranks, or none."""

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
        """`Step.attend` with q [T, Hq, D], k and v [T, Hkv, D] of this rank's tokens; returns [T, Hq, D]."""
        return self.step.attend_piece(layer, q_THD, k_THD, v_THD, rope, projections, context)

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
        """`Step.store` with this rank's tokens."""
        self.step.store_piece(layer, k_THD, v_THD, rope, q_THD)
