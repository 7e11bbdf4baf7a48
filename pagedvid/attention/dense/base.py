"""Dense attention by a library: what a provider is, what it returns, and why one cannot be used.

Libraries differ in where they want the heads and in what they return as log-sum-exp; M is the number of queries:

    flash-attn 2, 3, 4      [B, M, H, D]    lse [B, H, M]
    torch's CUDA flash      [B, M, H, D]    lse [B, H, M]
    torch's cuDNN           [B, H, M, D]    lse [B, H, M, 1], before torch 2.9 [B, H, M]
    torch's efficient       [B, H, M, D]    lse [B, H, M], M padded to a multiple of 32
    torch's CPU flash       [B, H, M, D]    lse [B, H, M]
    xformers                [B, M, H, G, D] lse [B, H, G, M]
    canonical (here)        [E, T, Hq, D]   lse [E, T, Hq], float32, natural log, scale included

Every provider in this folder converts at its edge, by views where it can.

Axes: E sequences, T queries, n keys, Hq query heads, H KV heads, G = Hq / H, D head_dim.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sequence
from importlib import import_module
from typing import Protocol

import torch
from torch import Tensor

from pagedvid.devices import capability


class DenseAttention(Protocol):
    """Attention over dense keys and values by one library."""

    name: str
    head_major: bool
    """Whether it is fastest with keys and values stored in memory as [E, H, n, D]; otherwise as [E, n, H, D]."""

    def __call__(self, q_ETHD: Tensor, k_EnHD: Tensor, v_EnHD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Attention without a mask, of E sequences of equal shape.

        Takes any strides with D innermost; q may be expanded along E (stride 0). Query heads h * G to h * G + G - 1
        see the keys and values of KV head h. There is at least one query and one key.

        Returns (out [E, T, Hq, D] in q's dtype, lse [E, T, Hq] float32, natural log), of any strides.
        """
        ...


class Fp8Attention(Protocol):
    """Attention over keys and values in float8_e4m3fn by one library; products are summed in float32."""

    name: str
    head_major: bool
    """As for `DenseAttention`."""

    def __call__(
        self,
        q_ETHD: Tensor,
        k_EnHD: Tensor,
        v_EnHD: Tensor,
        scale: float,
        key_scales_EH: Tensor,
        value_scales_EH: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As `DenseAttention`, with keys `k * key_scales` and values `v * value_scales`; k and v are float8_e4m3fn.

        Queries are rounded to float8_e4m3fn here, with one scale for the queries of each (sequence, KV head). Scales
        are float32. `out` has q's dtype, but the precision of bfloat16.
        """
        ...


def device_reasons(
    device: torch.device,
    dtype: torch.dtype,
    lowest: tuple[int, int],
    highest: int = 99,
    dtypes: Sequence[torch.dtype] = (torch.bfloat16, torch.float16),
) -> list[str]:
    """Why a CUDA kernel for `dtypes` and compute capabilities from `lowest` to major version `highest` cannot run."""
    if device.type != "cuda":
        return [f"it runs on cuda, not on {device.type}"]
    reasons, found = [], capability(device)
    if found is None:
        return [f"PyTorch can use no device {device} here"]
    if found < lowest or found[0] > highest:
        upper = " or newer" if highest == 99 else f" to {highest}.x"
        reasons.append(f"compute capability {found[0]}.{found[1]}; it needs {lowest[0]}.{lowest[1]}{upper}")
    if dtype not in dtypes:
        given, *allowed = (str(each).removeprefix("torch.") for each in (dtype, *dtypes))
        reasons.append(f"{given} activations; it takes {' and '.join(allowed)}")
    return reasons


def head_dim_reasons(head_dim: int, most: int, factor: int = 8) -> list[str]:
    """Why a library for multiples of `factor` up to `most` cannot run; empty when it can."""
    if head_dim > most or head_dim % factor:
        return [f"head_dim {head_dim}; it takes multiples of {factor} up to {most}"]
    return []


def missing(module: str, function: str, arguments: Sequence[str], install: str) -> list[str]:
    """Why `function` of `module` cannot be called with these arguments; empty when it can. Imports the module.

    Libraries fail to import in many ways (a missing part, a driver too old, a build for another PyTorch); whatever they
    raise is the reason.
    """
    try:
        called = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            return [f"{module} is not installed ({install})"]
        return [f"{module} cannot be imported: {error}"]
    except Exception as error:
        return [f"{module} cannot be imported: {error}"]
    if called is None:
        return [f"{module} has no {function} ({install})"]
    return _unknown(f"{module}.{function}", inspect.signature(called).parameters, arguments)


def missing_operator(name: str, arguments: Sequence[str]) -> list[str]:
    """Why PyTorch's operator `aten.name` cannot be called with these arguments; empty when it can."""
    operator = getattr(torch.ops.aten, name, None)
    if operator is None:
        return [f"torch {torch.__version__} has no operator {name}"]
    known = [argument.name for argument in operator.default._schema.arguments]
    return _unknown(f"{name} of torch {torch.__version__}", known, arguments)


def _unknown(name: str, known: Collection[str], arguments: Sequence[str]) -> list[str]:
    unknown = [argument for argument in arguments if argument not in known]
    return [f"{name} does not take {', '.join(unknown)}"] if unknown else []
