"""Dense keys and values for hosts that need them: what one layer sees, decoded into a reused buffer.

    window = DenseWindow(cache, stream, rope=rope)
    view = window.update_and_get(layer, k, v, chunk_start)           # in every layer of every forward
    out = attention(q, view.k, view.v, bias=view.key_bias(q))        # or a partial per span, lse - view.lse_shift(q)

One layer at a time is dense, and so is the current chunk of all layers: such hosts do not say which forward of a chunk
is the last, so what was written last is stored when the next chunk begins (or by `commit`). A host that can call
`Step.attend` needs none of this memory and gets the correction with it.

One method, `update_and_get`, covers two contracts:

SGLang 0.5, multimodal_gen/runtime/layers/kvcache/causal_attention_cache.py, an object per layer, [B, n, H, D]:
    update_and_get_attention_kv(*, key, value, current_chunk_start, ...) -> CausalAttentionKVView
    "write kv into the cache, returns the part visible to the current chunk",
    "current_chunk_start: the global position of the start of the chunk"
  The start of the current chunk overwrites it, a new start appends and evicts. SGLang's view has our `k` and `v` with a
  batch axis; its `visible_global_end` is chunk_start + n, its `visible_local_end` is len(view.k).

LightX2V, lightx2v/common/kvcache/base.py and rolling.py, an object for all layers, [n, H, D]:
    BaseKVCachePool.store_kv(k, v, start_idx, end_idx, layer_id);  k_cache(layer_id, attn_start, local_end) -> Tensor
  There the host counts places (get_local_end, set_ends, roll_window), stores, and takes slices of both buffers. Here
  one call does all of it: its `k` and `v` are those slices, and `Window` does the counting.

Axes: n tokens, T queries, H KV heads, Hq query heads, D head_dim, S spans.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from pagedvid.arguments import instance_of, whole_number
from pagedvid.attention.measure import sampled_offsets
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.step import DTYPES, checked_layer
from pagedvid.cache.plan import QueryRange, next_position
from pagedvid.cache.stream import Stream
from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.base import saturated
from pagedvid.codecs.heads import index_of
from pagedvid.correction.formula import QuantError, QuerySquares
from pagedvid.errors import ConfigError, ShapeError, StateError
from pagedvid.host_state import independent_of_host, plain_tensor
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.checked import CheckedRope, require_same_rope
from pagedvid.rotary.tables import RopeTables


@dataclass(frozen=True)
class DenseView:
    """What one layer sees: committed chunks, then the current one. Valid until the next `update_and_get`."""

    k: Tensor
    """[n, H, D], in the host's channel order; rotated if the host's keys arrive rotated."""
    v: Tensor
    spans: tuple[slice, ...]
    """The keys of each chunk; the last span is the current one."""
    errors: tuple[tuple[tuple[Heads, QuantError], ...], ...]
    """The quant errors of each span's keys, by heads that share a codec; none for a span that is not corrected."""
    rotation: Rotation
    scale: float

    @independent_of_host
    def lse_shift(self, q_THD: Tensor) -> Tensor:
        """What to subtract from the log-sum-exp (natural log) of each span's partial, float32 [S, Hq, T].

        `q_THD`: queries of the current chunk [T, Hq, D], before or after rotary embedding, like the keys. Subtract
        before the partials are merged. correction/formula.py has the formula, `CacheSpec.correction` the modes.
        """
        num_heads, q_THD = self.k.shape[1], plain_tensor("q", q_THD)
        q = self.rotation.rotated(q_THD, torch.arange(len(q_THD), device=q_THD.device))
        squares = QuerySquares(q.unflatten(1, (num_heads, -1)).permute(1, 2, 0, 3).flatten(1, 2))
        shift = torch.zeros(
            len(self.spans), num_heads, q.shape[0] * q.shape[1] // num_heads, dtype=torch.float32, device=q.device
        )
        for span, errors in enumerate(self.errors):
            for heads, error in errors:
                rows = index_of(heads, q.device)
                shift[span, rows] = error.bias(squares, self.scale, rows)
        return shift.unflatten(2, (-1, len(q_THD))).flatten(1, 2)

    @independent_of_host
    def key_bias(self, q_THD: Tensor) -> Tensor:
        """What to add to the scaled scores, float32 [Hq, T, n]: the negative shift of each key's span.

        It is as large as the scores. A kernel that takes a function of the scores can look up `lse_shift` by
        `span_of_key` instead.
        """
        return -self.lse_shift(q_THD)[self.span_of_key].permute(1, 2, 0)

    @property
    def span_of_key(self) -> Tensor:
        """Which span each key belongs to, int64 [n]."""
        lengths = torch.tensor([span.stop - span.start for span in self.spans], dtype=torch.int64, device=self.k.device)
        return torch.repeat_interleave(lengths, output_size=self.spans[-1].stop)


@dataclass
class _Current:
    """One layer of the current chunk, as last written."""

    k: Tensor
    v: Tensor
    q: Tensor | None
    """The queries that alpha is fitted to, those of `sampled_offsets`; None if no alpha is fitted."""

    def all_queries(self) -> Tensor | None:
        """Queries of all tokens [n, Hq, D], zero for those that alpha is not fitted to."""
        if self.q is None:
            return None
        sampled = sampled_offsets(len(self.k), self.q.device)
        return self.q.new_zeros(len(self.k), *self.q.shape[1:]).index_copy_(0, sampled, self.q)


class DenseWindow:
    """One branch of a stream as a host with dense attention sees it. `dtype`: that of the views."""

    @independent_of_host
    def __init__(
        self,
        cache: PagedKVCache,
        stream: Stream,
        *,
        rope: RopeTables | None = None,
        dtype: torch.dtype = torch.bfloat16,
        branch: str = "cond",
    ) -> None:
        """`rope`: the rotary tables with which the host rotates its keys; None if keys have no positions."""
        self._cache = instance_of(PagedKVCache, "cache", cache, "a PagedKVCache", ConfigError)
        self._stream = instance_of(Stream, "stream", stream, "what `open` or `fork` returned", StateError)
        self._branch = branch
        if not isinstance(dtype, torch.dtype) or dtype not in DTYPES:
            raise ConfigError(f"dtype is {dtype!r}; allowed are {', '.join(map(str, DTYPES))}")
        self._history = stream.history(branch)
        self._rope = None if rope is None else CheckedRope(rope, cache.spec.head_dim // 2)
        for chunk in self._history.chunks.values():
            for stored in set(chunk.ropes.values()):
                require_same_rope(self._rope, stored, chunk.position, chunk.num_tokens)
        self._current: dict[int, _Current] = {}
        self._rotation = Rotation(None, False)
        spec = cache.spec
        self._buffer = torch.empty(2, 0, spec.num_kv_heads, spec.head_dim, dtype=dtype, device=cache.device)
        self._needs_queries = any(spec.shape.keeps_alpha(codecs) for codecs in stream.codecs.all())

    @property
    def position(self) -> int:
        """Position of the first token of the chunk that is not committed yet."""
        return next_position(self._history)

    @property
    def workspace_bytes(self) -> int:
        """Dense bytes held now: the window of one layer and the current chunk of all layers."""
        held = (x for layer in self._current.values() for x in (layer.k, layer.v, layer.q))
        return self._buffer.nbytes + sum(x.nbytes for x in held if x is not None)

    @independent_of_host
    def update_and_get(
        self, layer: int, k_nHD: Tensor, v_nHD: Tensor, chunk_start: int, q_nHD: Tensor | None = None
    ) -> DenseView:
        """Writes one layer of the current chunk and returns what the layer sees. No gradient passes through.

        k, v [n, H, D]; `chunk_start`: tokens of the video before the chunk. The start of the current chunk overwrites
        it; the token after its end commits it first, as last written by every layer. `q_nHD` [n, Hq, D]: needed for
        correction "measured", which fits alpha to queries.
        Raises StateError for any other start, ShapeError, ConfigError without queries; NonFiniteError from a commit.
        """
        k_nHD, v_nHD, q_nHD = self._checked(layer, k_nHD, v_nHD, q_nHD)
        chunk_start = whole_number("chunk_start", chunk_start, 0)
        self._begin(chunk_start, len(k_nHD))
        if not self._current:
            self._rotation = self._rotation_at(self.position, len(k_nHD))
        self._write(layer, k_nHD, v_nHD, q_nHD)
        return self._view(layer)

    @independent_of_host
    def commit(self) -> None:
        """Stores the current chunk now: for the last one of a video, or before a fork. Raises StateError without one.

        After an error, here or when `update_and_get` begins the next chunk, everything is as it was before.
        """
        missing = sorted(set(range(self._cache.spec.num_layers)) - self._current.keys())
        if missing:
            raise StateError(
                f"chunk {self._history.num_committed} cannot be committed before layers {missing} have written it; "
                "every layer calls update_and_get in each forward"
            )
        rope = None if self._rope is None else self._rope.host
        with self._cache.commit([QueryRange(self._stream, self._branch, len(self._current[0].k))]) as step:
            for layer, current in self._current.items():
                step.store(layer, current.k, current.v, rope, q_THD=current.all_queries())
        self._current.clear()

    def _begin(self, chunk_start: int, num_tokens: int) -> None:
        begun = self._history.num_committed_tokens
        held_tokens = len(next(iter(self._current.values())).k) if self._current else 0
        if held_tokens and chunk_start == begun + held_tokens:
            self.commit()
        elif chunk_start != begun:
            after = f" or {begun + held_tokens}, which commits the current chunk" if held_tokens else ""
            raise StateError(f"chunk_start is {chunk_start}; allowed is {begun}{after}")
        elif held_tokens not in (0, num_tokens):
            raise ShapeError(f"the chunk at {begun} has {held_tokens} tokens; it was overwritten with {num_tokens}")

    def _rotation_at(self, position: int, num_tokens: int) -> Rotation:
        arrive_rotated = self._cache.spec.keys_arrive == "rotated"
        if self._rope is None:
            return Rotation(None, arrive_rotated)
        cos, sin = (table.to(self._cache.device).unsqueeze(1) for table in self._rope.tables(position, num_tokens))
        return Rotation(self._rope, arrive_rotated, cos, sin)

    def _write(self, layer: int, k: Tensor, v: Tensor, q: Tensor | None) -> None:
        sampled = q[sampled_offsets(len(q), q.device)] if q is not None and self._needs_queries else None
        self._current[layer] = _Current(k.clone(), v.clone(), sampled)

    def _view(self, layer: int) -> DenseView:
        current, chunks = self._current[layer], self._history.chunks.values()
        ends = [0, *accumulate((*(chunk.num_tokens for chunk in chunks), len(current.k)))]
        if ends[-1] > self._buffer.shape[1]:
            self._buffer = self._buffer.new_empty(2, ends[-1], *self._buffer.shape[2:])
        k, v = self._buffer[:, : ends[-1]]
        spans = tuple(slice(start, stop) for start, stop in pairwise(ends))
        errors: list[tuple[tuple[Heads, QuantError], ...]] = []
        for chunk, span in zip(chunks, spans, strict=False):
            k[span], v[span], of_span = self._cache.read(self._stream, chunk.index, layer, self._branch)
            errors.append(of_span)
        saturated(self._buffer[:, : ends[-1]])
        k[spans[-1]], v[spans[-1]] = current.k, current.v
        return DenseView(k, v, spans, (*errors, ()), self._rotation, self._cache.spec.scale)

    def _checked(self, layer: int, k: Tensor, v: Tensor, q: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        spec = self._cache.spec
        if self._stream.is_released:
            raise StateError(f"stream {self._stream.id} was released")
        checked_layer(layer, spec.num_layers)
        if self._needs_queries and q is None:
            raise ConfigError(
                'correction "measured" fits a factor to queries: pass them to update_and_get, or open the cache with '
                'correction "formula"'
            )
        k, v, q = plain_tensor("k", k), plain_tensor("v", v), None if q is None else plain_tensor("q", q)
        for name, x, heads in (("k", k, spec.num_kv_heads), ("v", v, spec.num_kv_heads), ("q", q, spec.query_heads)):
            expected = (len(k), heads, spec.head_dim)
            if x is not None and tuple(x.shape) != expected:
                raise ShapeError(f"{name} has shape {tuple(x.shape)}; tokens x heads x head_dim are {expected}")
            if x is not None and (x.dtype not in DTYPES or x.device != self._cache.device):
                raise ShapeError(
                    f"{name} is {x.dtype} on {x.device}; it must be one of {', '.join(map(str, DTYPES))} on "
                    f"{self._cache.device}"
                )
        return k, v, q
