"""One forward of a model as a step over pages, reached through an object in the place of a layer's pool of keys.

Every layer of a model gives its queries, keys and values to the operator `ar_diffusion_paged_write_attn`,
together with the pool that they go to. Here an object stands in the place of the pool, and PyTorch hands any operator
with such an argument to the object's `__torch_function__`. So no model and no function of vLLM-Omni is replaced.
Axes: T tokens of all ranges, H heads, D channels of a head.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor

from pagedvid.attention.step import Step
from pagedvid.cache.plan import QueryRange
from pagedvid.errors import ShapeError, StateError
from pagedvid.paged_kv_cache import PagedKVCache
from pagedvid.rotary.tables import RopeTables

OPERATOR = "vllm_omni.ar_diffusion_paged_write_attn"


class PagedForward:
    """Takes the place of `ARDiffusionPagedForwardContext`: the pages of one forward, of one or more sessions.

    The step opens when the first layer attends. One that only reads ends with the last layer; a commit pass ends with
    `end`, which publishes the chunks of all sessions, or `abandon`, after which nothing has changed.
    """

    def __init__(self, cache: PagedKVCache, ranges: Sequence[QueryRange], rope: RopeTables | None) -> None:
        self._cache, self._ranges, self._rope = cache, ranges, rope
        self._opened = ExitStack()
        self._step: Step | None = None
        self._has_ended = False

    @property
    def is_commit(self) -> bool:
        """Whether the forward stores."""
        return self._ranges[0].commit

    @property
    def has_begun(self) -> bool:
        """Whether a layer has attended."""
        return self._step is not None

    @property
    def seq_len(self) -> int:
        """Tokens of the forward; the model's transformer compares them with its own."""
        return sum(each.stream.chunk_tokens for each in self._ranges)

    def prepare(self, device: object, action_len: int, query_len: int) -> None:
        """Called by a transformer before its layers. Raises ShapeError for tokens that are not the block's own."""
        if action_len or query_len != self.seq_len:
            raise ShapeError(
                f"this forward has {query_len} query and {action_len} action tokens; its block has {self.seq_len}, and "
                "action tokens cannot attend over pages"
            )

    def layer_inputs(self, layer: int) -> Any:
        """What a transformer gives to the self-attention of one layer, as `ARDiffusionPagedLayerInputs`."""
        from vllm_omni.experimental.ar_diffusion.kv_cache.paged_attention import ARDiffusionPagedLayerInputs

        names = ARDiffusionPagedLayerInputs._fields
        pool = LayerPages(self, layer)
        return ARDiffusionPagedLayerInputs(**{**dict.fromkeys(names), "key_pool": pool, "value_pool": pool})

    def attend(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        """Self-attention of one layer over history and block; a commit pass stores k and v. Returns [T, H, D]."""
        if self._has_ended:
            raise StateError("this forward has ended; ask the session for another one (get_kv_caches)")
        if self._step is None:
            self._step = self._opened.enter_context(self._cache.step(self._ranges))
        out = self._step.attend(layer, q_THD, k_THD, v_THD, self._rope)
        if not self.is_commit and layer == self._cache.spec.num_layers - 1:
            self.end()
        return out

    def rotary_tables(self) -> tuple[Tensor, Tensor]:
        """(cos, sin), each float32 [T, D / 2], of all tokens. Raises StateError if keys have no positions."""
        if self._rope is None:
            raise StateError("these keys have no positions")
        tables = (self._rope.tables(*_position(each)) for each in self._ranges)
        cos, sin = zip(*tables, strict=True)
        return torch.cat(cos), torch.cat(sin)

    def end(self) -> None:
        """Ends the step; a commit pass publishes its chunks. Raises StateError if a layer was left out of it."""
        self._has_ended = True
        self._opened.close()

    def abandon(self) -> None:
        """Ends a step that did not come to its end, as an exception would have."""
        self._has_ended = True
        unfinished = StateError("the forward was abandoned")
        try:
            with self._opened:
                raise unfinished
        except StateError as error:
            if error is not unfinished:
                raise


def _position(asked: QueryRange) -> tuple[int, int]:
    """The first token of the next block of a stream, and how many it has: all blocks have chunk_tokens."""
    stream = asked.stream
    return stream.num_committed * stream.chunk_tokens, stream.chunk_tokens


class LayerPages:
    """Stands in the place of a layer's pool."""

    def __init__(self, forward: PagedForward, layer: int) -> None:
        self.forward, self.layer = forward, layer

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Tensor:
        """The operator, called with pages. Raises StateError for another one, ShapeError for what pages do not take."""
        if str(func) != OPERATOR:
            raise StateError(f"{func} was called with pages of pagedvid; only {OPERATOR} can be")
        call = dict(zip((each.name for each in func.default._schema.arguments), args, strict=True))
        q_THD, pages = call["query"], call["key_pool"]
        if call["k_act"] is not None:
            raise ShapeError("action tokens cannot attend over pages: use vLLM-Omni's own runner for this pipeline")
        if not math.isclose(call["softmax_scale"], q_THD.shape[-1] ** -0.5):
            raise ShapeError(f"the softmax scale is {call['softmax_scale']}; over pages it is 1 / sqrt(head_dim)")
        return pages.forward.attend(pages.layer, q_THD, call["k_curr"], call["v_curr"])
