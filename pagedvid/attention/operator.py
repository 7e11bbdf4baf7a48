"""`step.attend` and `step.store` as operators, so that torch.compile(fullgraph=True) keeps a host's layer whole.

    eager          step.attend(...)                                          -> Step.attend
    being compiled step.attend(...) -> node pagedvid::attend in the graph
    running        pagedvid::attend(handle of the step, q, k, v, ...)        -> Step.attend

A graph holds no step, rope or projection, but takes their handles (handles.py), so one graph serves all steps, chunks
and histories. The operators store pages, which no compiler sees. They therefore declare that they write to the step's
handle: calls of one step are then neither removed, merged nor reordered. Nothing is really written, so a copy of the
handle, which a compiler may make, names the same step.

CUDA graphs that PyTorch records by itself (mode="reduce-overhead") leave the operators out: replaying one would read
the pages of the step in which it was recorded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from pagedvid.attention.history import Context
from pagedvid.errors import ShapeError
from pagedvid.handles import Compilable, object_of
from pagedvid.rotary.projective import Projection
from pagedvid.rotary.tables import RopeTables

_OPTIONS: dict[str, Any] = {"mutates_args": ("step",)}
if hasattr(torch.Tag, "cudagraph_unsafe"):  # older versions record no graph with a tensor of the CPU, such as a handle
    _OPTIONS["tags"] = (torch.Tag.cudagraph_unsafe,)
_BREAKS_HAVE_MESSAGES = torch.__version__ >= "2.8"


# ---------------------------------------------------------------------- what a compiler traces


def attend_in_graph(
    step: Compilable,
    layer: SupportsIndex,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    rope: RopeTables | None = None,
    *,
    projections: Sequence[Projection] = (),
    context: Context = (),
) -> Tensor:
    """`Step.attend` as a node of the graph, with its arguments and its result [T, Hq, D].

    Returns NotImplemented, after breaking the graph, for a rope or a projection without a handle.
    """
    if not _have_handles(rope, *projections):
        return NotImplemented
    pairs: list[Tensor | None] = []
    for pair in context:
        keys, values = (None, None) if pair is None else pair
        pairs += [None if keys is None else keys.detach(), None if values is None else values.detach()]
    out: Tensor = attend_operator(
        step.handle,
        *_layer(layer),
        q_THD.detach(),
        k_THD.detach(),
        v_THD.detach(),
        _handle(rope),
        [_handle(each) for each in projections],
        pairs,
    )
    return out


def store_in_graph(
    step: Compilable,
    layer: SupportsIndex,
    k_THD: Tensor,
    v_THD: Tensor,
    rope: RopeTables | None = None,
    *,
    q_THD: Tensor | None = None,
) -> None:
    """`Step.store` as a node of the graph, with its arguments [T, heads, D].

    Returns NotImplemented, after breaking the graph, for a rope without a handle.
    """
    if not _have_handles(rope):
        return NotImplemented
    store_operator(
        step.handle,
        *_layer(layer),
        k_THD.detach(),
        v_THD.detach(),
        _handle(rope),
        None if q_THD is None else q_THD.detach(),
    )


def _layer(layer: SupportsIndex) -> tuple[SupportsIndex, Tensor | None]:
    """A layer's number as the operators take it: known to the compiler, or in a tensor."""
    return (-1, layer) if isinstance(layer, Tensor) else (layer, None)


def _have_handles(*given: object) -> bool:
    for each in given:
        if not (each is None or isinstance(each, Compilable)):
            advice = (
                f"a compiled graph cannot take a {type(each).__name__}: derive its class from pagedvid.Compilable, or "
                "compile without fullgraph=True"
            )
            torch._dynamo.graph_break(**({"msg": advice} if _BREAKS_HAVE_MESSAGES else {}))
            return False
    return True


def _handle(given: Any) -> Tensor | None:
    return None if given is None else given.handle


# ---------------------------------------------------------------------- what the graph runs


def _run_attend(
    step: Tensor,
    layer: int,
    layer_number: Tensor | None,
    q_THD: Tensor,
    k_THD: Tensor,
    v_THD: Tensor,
    rope: Tensor | None,
    projections: Sequence[Tensor],
    context: Sequence[Tensor | None],
) -> Tensor:
    pairs = zip(context[::2], context[1::2], strict=True)
    out: Tensor = object_of(step).attend(
        _number(layer, layer_number),
        q_THD,
        k_THD,
        v_THD,
        None if rope is None else object_of(rope),
        projections=[object_of(each) for each in projections],
        context=[None if keys is None else (keys, values) for keys, values in pairs],
    )
    return out.contiguous()


def _run_store(
    step: Tensor,
    layer: int,
    layer_number: Tensor | None,
    k_THD: Tensor,
    v_THD: Tensor,
    rope: Tensor | None,
    q_THD: Tensor | None,
) -> None:
    given = None if rope is None else object_of(rope)
    object_of(step).store(_number(layer, layer_number), k_THD, v_THD, given, q_THD=q_THD)


def _number(layer: int, layer_number: Tensor | None) -> int:
    if layer_number is None:
        return layer
    if layer_number.device.type != "cpu":
        raise ShapeError(f"the layer's number is on {layer_number.device}, where reading it would wait; use the CPU")
    return layer_number.__index__()


attend_operator = torch.library.custom_op(
    "pagedvid::attend",
    _run_attend,
    schema="(Tensor(a!) step, SymInt layer, Tensor? layer_number, Tensor q, Tensor k, Tensor v, Tensor? rope, "
    "Tensor[] projections, Tensor?[] context) -> Tensor",
    **_OPTIONS,
)
store_operator = torch.library.custom_op(
    "pagedvid::store",
    _run_store,
    schema="(Tensor(a!) step, SymInt layer, Tensor? layer_number, Tensor k, Tensor v, Tensor? rope, Tensor? q) -> ()",
    **_OPTIONS,
)


@attend_operator.register_fake
def _shape_of_attend(
    step: Tensor, layer: int, layer_number: Tensor | None, q: Tensor, k: Tensor, v: Tensor, *more: Any
) -> Tensor:
    projections = more[1]
    return q.new_empty((1 + len(projections), *q.shape) if projections else q.shape)


@store_operator.register_fake
def _no_output(*_: object) -> None:
    return None
