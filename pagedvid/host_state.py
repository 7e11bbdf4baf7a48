"""Shields pagedvid from what a host has set in PyTorch, so that a call gives the same result under any setting.

    autocast                     would change the dtype of products, and so outputs and stored bytes
    TF32 or BF16 for float32     would do the same
    inference mode, gradients    tensors that are kept could not be written to in the next step
    default device, subclasses   would put tables on another device, or run every operation through Python
    torch.compile                would trace each step anew for every new length of the history
    the current CUDA device      would get the kernels of a cache on another one

The default dtype belongs to the whole process and is not changed while videos are made: every tensor that pagedvid
makes names its own dtype.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any, ParamSpec, TypeVar

import torch

from pagedvid.errors import ShapeError

P = ParamSpec("P")
R = TypeVar("R")


def independent_of_host(function: Callable[P, R]) -> Callable[P, R]:
    """Runs `function` under PyTorch's own defaults, whatever the caller has set; torch.compile skips it."""

    @functools.wraps(function)
    def under_defaults(*args: P.args, **kwargs: P.kwargs) -> R:
        with pytorch_defaults():
            return function(*args, **kwargs)

    uncompiled: list[Callable[P, R]] = []

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes longer than a short video
            return under_defaults(*args, **kwargs)
        if not uncompiled:
            uncompiled.append(torch.compiler.disable(under_defaults))
        return uncompiled[0](*args, **kwargs)

    return call


def compiled_as(in_graph: Callable[..., R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Code that is being compiled calls `in_graph` in place of the decorated function, unless its arguments say
    otherwise: after a break of the graph, the decorated function runs as in eager mode."""

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            if torch.compiler.is_compiling():
                out = in_graph(*args, **kwargs)
                if out is not NotImplemented:
                    return out
            return function(*args, **kwargs)

        return call

    return decorate


@contextmanager
def pytorch_defaults() -> Iterator[None]:
    """No gradients, no inference mode, no autocast, no function modes, float32 products in float32."""
    with torch._C.DisableTorchFunction(), ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for device_type in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(_exact_float32_products())
        yield


def current_device(device: torch.device) -> AbstractContextManager[object]:
    """Makes a GPU the current one: kernels are launched on the current device, whatever device their tensors are on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


@contextmanager
def float32_modules() -> Iterator[None]:
    """Makes float32 PyTorch's default dtype, in which modules are made: weights loaded into others would be rounded.

    For loading only, because the setting applies to all threads.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def plain_tensor(name: str, x: object) -> torch.Tensor:
    """`x` without its subclass and with its last axis innermost in memory, if it is an ordinary dense tensor.

    Raises ShapeError for anything else: the memory of a subclass with its own dispatch (DTensor, a quantized weight, a
    tensor of torch.func) is not what its shape says.
    """
    if not isinstance(x, torch.Tensor):
        raise ShapeError(f"{name} is a {type(x).__name__}; it must be a torch.Tensor")
    has_own_dispatch = type(x).__torch_dispatch__ is not torch.Tensor.__torch_dispatch__
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor(x)
    if has_own_dispatch or is_wrapped or x.layout != torch.strided or x.is_nested or x.is_quantized:
        kind = "wrapped by torch.func" if is_wrapped else f"a {type(x).__name__} with layout {x.layout}"
        raise ShapeError(f"{name} is {kind}; give an ordinary dense tensor, such as DTensor.to_local() or to_dense()")
    x = x.as_subclass(torch.Tensor).resolve_neg()
    return x if x.ndim == 0 or x.stride(-1) == 1 else x.contiguous()


@contextmanager
def _exact_float32_products() -> Iterator[None]:
    """The setting applies to all threads while the block runs; it is changed only where products would be rounded."""
    rounded = [(matmul, matmul.fp32_precision) for matmul in _PRODUCTS if matmul.fp32_precision not in ("none", "ieee")]
    for matmul, _ in rounded:
        matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        for matmul, before in rounded:
            matmul.fp32_precision = "none"  # follows its backend
            if matmul.fp32_precision != before:
                matmul.fp32_precision = before


class _AllProducts:
    """The single setting of PyTorch before 2.9, under today's names."""

    @property
    def fp32_precision(self) -> str:
        """ "ieee" or "tf32"."""
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else torch.get_float32_matmul_precision()

    @fp32_precision.setter
    def fp32_precision(self, precision: str) -> None:
        torch.set_float32_matmul_precision({"ieee": "highest", "none": "highest"}.get(precision, precision))


_PRODUCTS: tuple[Any, ...] = (
    (torch.backends.mkldnn.matmul, torch.backends.cuda.matmul)
    if hasattr(torch.backends.mkldnn, "matmul")
    else (_AllProducts(),)
)
