"""`model.cuda_graphs`: a network's forward as CUDA graphs of what lies between its calls of `attend`.

    recorded once     | graph 0 |        | graph 1 |        | graph 2 |
    every forward     | run 0   | attend | run 1   | attend | run 2   |

Attention reads different pages in every step, so the host still launches it. The rest of a forward is the same
operations whenever the arguments have the same layout, and one call for each layer launches them all. The graphs read
and write fixed addresses: arguments are copied in before a run, queries, keys and values go to buffers that all layers
share, and the output is copied out before the next run overwrites it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from types import MethodType
from typing import Any, SupportsIndex

import torch
from torch import Tensor, nn

from pagedvid.attention.operator import attend_in_graph
from pagedvid.engine.protocol import Attend
from pagedvid.errors import ShapeError
from pagedvid.handles import Compilable
from pagedvid.host_state import compiled_as
from pagedvid.networks.arguments import Layout, taken_apart
from pagedvid.networks.cuda_graphs import CudaGraphs, Graph

MAX_LAYOUTS = 16
"""Most layouts that are kept, recorded or seen once; the least recently used one is dropped."""


def capture(network: nn.Module, device: torch.device, new_graph: Callable[[], Graph] | None = None) -> None:
    """Lets a network, whose last argument is `attend`, run from graphs. Calling it again forgets the former ones.

    `new_graph`: makes a graph; None: one of CUDA.
    """
    forward = MethodType(type(network).forward, network)
    weights = [*network.parameters(), *network.buffers()]
    network.forward = Captured(forward, weights, CudaGraphs(device) if new_graph is None else new_graph)


class Captured:
    """A network's forward.

    The first forward of a layout runs without graphs: a warm-up for libraries, and for blocks that are to be compiled.
    The second one is recorded, and later ones replay the recording.
    """

    def __init__(
        self, forward: Callable[..., Tensor], weights: Sequence[Tensor], new_graph: Callable[[], Graph]
    ) -> None:
        """`weights`: all tensors that the forward reads besides its arguments."""
        self._forward, self._weights, self._new_graph = forward, weights, new_graph
        self._places: tuple[int, ...] = ()
        """Of the weights, when the recordings were made."""
        self._recordings: OrderedDict[Layout, Recording | None] = OrderedDict()
        """By layout, the latest last; None: seen once."""

    def __call__(self, *given: Any) -> Tensor:
        """What the forward returns, in memory of its own."""
        *arguments, attend = given
        layout, tensors = taken_apart(arguments)
        self._forget_recordings_of_moved_weights()
        is_known, recording = layout in self._recordings, self._recordings.get(layout)
        if recording is not None:
            out = recording.run(tensors, attend)
        elif is_known:
            recording, out = record(self._forward, layout, tensors, attend, self._new_graph)
        else:
            out = self._forward(*arguments, _Seam(attend).attend)
        self._recordings[layout] = recording
        self._recordings.move_to_end(layout)
        if len(self._recordings) > MAX_LAYOUTS:
            self._recordings.popitem(last=False)
        return out

    def _forget_recordings_of_moved_weights(self) -> None:
        places = tuple(weight.data_ptr() for weight in self._weights)
        if places != self._places:
            self._recordings.clear()
            self._places = places


class _Seam(Compilable):
    """`attend` as the network gets it: always of this class, so that no block is compiled anew to be recorded."""

    def __init__(self, attend: Callable[..., Tensor]) -> None:
        self._attend = attend

    @compiled_as(attend_in_graph)
    def attend(
        self, layer: SupportsIndex, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, rope: None = None, **how: Any
    ) -> Tensor:
        """Compiled code names all arguments of `Step.attend`. Raises ShapeError for what a recording leaves out."""
        if rope is not None or any(how.values()):
            raise ShapeError(
                "a recorded network attends to its own tokens and their history; leave model.cuda_graphs out"
            )
        return self._attend(layer, q_THD, k_THD, v_THD)


class Recording:
    """The graphs of one layout, and the places that they read and write."""

    def __init__(self, tensors: Sequence[Tensor], new_graph: Callable[[], Graph]) -> None:
        """Called by `record`, which lets the network call `cut` in place of `attend`."""
        self.arguments = [tensor.clone() for tensor in tensors]
        self._new_graph = new_graph
        self._graphs: list[Graph] = []
        self._layers: list[SupportsIndex] = []
        """Whose attention follows each graph but the last."""
        self._qkv: list[Tensor] = []
        """[T, H, D] each; all layers share them."""
        self._attended_THD: Tensor | None = None
        self._out: Tensor | None = None

    def run(self, tensors: Sequence[Tensor], attend: Attend) -> Tensor:
        """A forward with these arguments."""
        for own, given in zip(self.arguments, tensors, strict=True):
            own.copy_(given)
        for number, layer in enumerate(self._layers):
            self._graphs[number].replay()
            self._keep(attend(layer, *self._qkv))
        self._graphs[-1].replay()
        assert self._out is not None, "a recording is run when it is complete"
        return self._out.clone()

    def begin(self) -> None:
        """Begins the next graph."""
        self._graphs.append(self._new_graph())
        self._graphs[-1].begin()

    def cut(self, attend: Attend, layer: SupportsIndex, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor) -> Tensor:
        """Ends a graph, runs it and the attention that follows, and begins the next one."""
        if not self._qkv:
            self._qkv = [torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q_THD, k_THD, v_THD)]
        for own, x in zip(self._qkv, (q_THD, k_THD, v_THD), strict=True):
            own.copy_(x)
        self._graphs[-1].end()
        self._layers.append(layer)
        self._graphs[-1].replay()
        attended_THD = self._keep(attend(layer, *self._qkv))
        self.begin()
        return attended_THD

    def end(self, out: Tensor) -> Tensor:
        """Ends and runs the last graph, and returns what it wrote to `out`, in memory of its own."""
        self._graphs[-1].end()
        self._graphs[-1].replay()
        self._out = out
        return out.clone()

    def abandon(self) -> None:
        """After an error in the network or in an attention; the latter was called outside of any graph."""
        if len(self._graphs) > len(self._layers):
            self._graphs[-1].abandon()

    def _keep(self, attended_THD: Tensor) -> Tensor:
        if self._attended_THD is None:
            self._attended_THD = attended_THD.clone()
        else:
            self._attended_THD.copy_(attended_THD)
        return self._attended_THD


def record(
    forward: Callable[..., Tensor],
    layout: Layout,
    tensors: Sequence[Tensor],
    attend: Attend,
    new_graph: Callable[[], Graph],
) -> tuple[Recording, Tensor]:
    """A forward with these arguments that is recorded, and what it returns."""
    recording = Recording(tensors, new_graph)
    recording.begin()
    try:
        out = forward(*layout.filled(recording.arguments), _Seam(partial(recording.cut, attend)).attend)
    except BaseException:
        recording.abandon()
        raise
    return recording, recording.end(out)
