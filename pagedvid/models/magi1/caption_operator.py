"""Cross-attention to captions as an operator, so that a compiled layer keeps its one graph whatever it reads.

Every range reads a caption of its own length, and ranges with the same caption share their keys: traced, that would be
a graph for each combination. Like `step.attend` (attention/operator.py) the graph names the objects by their handles.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pagedvid.handles import Compilable, object_of


def read_captions_in_graph(attention: Compilable, q_THD: Tensor, inputs: Compilable) -> Tensor:
    """`Attention.read_captions` as a node of the graph, with its arguments and its result [T, H * D]."""
    out: Tensor = _read_captions(attention.handle, inputs.handle, q_THD)
    return out


@torch.library.custom_op("pagedvid::magi_read_captions", mutates_args=())
def _read_captions(attention: Tensor, inputs: Tensor, q_THD: Tensor) -> Tensor:
    out: Tensor = object_of(attention).read_captions(q_THD, object_of(inputs))
    return out


@_read_captions.register_fake
def _shape_of_captions(attention: Tensor, inputs: Tensor, q_THD: Tensor) -> Tensor:
    return q_THD.new_empty(q_THD.flatten(1).shape)
