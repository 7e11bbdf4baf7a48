"""`model.compile`: the blocks of a network through torch.compile, each a single graph with its attention as one node.

The graphs are few, whatever runs: a block's number and the step are read from tensors when a graph runs, so that all
blocks, steps and histories share it, and sizes are symbols, so that streams come and go without another compilation.
PyTorch makes one graph for a single range and one for all larger numbers of ranges.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn

from pagedvid.errors import ConfigError

_NEEDED = {
    "cpu": "a C++ compiler (on Debian and Ubuntu: apt install g++)",
    "cuda": "Triton and a C compiler (pip install triton; on Debian and Ubuntu: apt install gcc)",
}
"""What PyTorch's compiler needs, by type of device."""


def require_compiler(device: torch.device) -> None:
    """Compiles a small function, so that what is missing is known before a model is loaded. Raises ConfigError."""
    from torch._inductor import config

    try:
        with config.patch(fx_graph_cache=False):  # what an earlier run compiled says nothing of today
            torch.compile(_tried, fullgraph=True)(torch.zeros(8, dtype=torch.float32, device=device))
    except (RuntimeError, OSError) as error:
        raise ConfigError(
            f"model.compile: PyTorch cannot compile for {device.type} here ({str(error).splitlines()[0]}); install "
            f"{_NEEDED[device.type]}, or remove model.compile"
        ) from error


def _tried(x: Tensor) -> Tensor:
    return x.sin() + 1


def compile_blocks(blocks: Sequence[nn.Module], backend: str | Callable[..., Any] = "inductor") -> None:
    """Lets these blocks run compiled; names in their state dict stay. What cannot be one graph raises in the first
    forward, and nothing runs uncompiled in its place. Calling it again starts anew.

    `backend`: of torch.compile.
    """
    for block in blocks:
        # Not `block.compile()`, which would take hooks into the graph: those of offloaded blocks move weights.
        block.forward = _compiled(MethodType(type(block).forward, block), backend)


def _compiled(forward: Callable[..., Any], backend: str | Callable[..., Any]) -> Callable[..., Any]:
    in_graph = torch.compile(forward, fullgraph=True, dynamic=True, backend=backend)

    def call(*given: Any) -> Any:
        # What the first block gets may be a view of another tensor, which would take a graph of its own.
        return in_graph(*(x.detach().contiguous() if isinstance(x, Tensor) else x for x in given))

    return call
