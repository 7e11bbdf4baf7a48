"""Attention backends: what one has to offer, and how `auto` chooses.

To add a backend: one file with a class that satisfies `AttentionBackend`, and one line in `_CREATORS`, whose function
imports that file only when asked. A backend says why it cannot run here instead of failing later.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from pagedvid.attention.projection import StepProjection
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.sources import Context
from pagedvid.attention.store import LayerStore
from pagedvid.cache.plan import StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.book import CodecBook
from pagedvid.errors import BackendError

logger = logging.getLogger(__name__)


class PreparedView(Protocol):
    """A step as seen through one view, ready for all layers."""

    def attend(self, layer: int, q_THD: Tensor, k_THD: Tensor, v_THD: Tensor, context: Context = ()) -> Tensor:
        """Each range's attention over its visible chunks (corrected), current and context keys: [T, Hq, D] like q.

        q, k and v are those of the model; the view rotates or maps them. Does not modify its inputs nor any page.
        """
        ...


class AttentionBackend(Protocol):
    """Attention over pages, current keys and context keys."""

    name: str
    store: LayerStore
    """Writes and reads whole layers of chunks."""

    def prepare(
        self, plan: StepPlan, view: Rotation | StepProjection, dtype: torch.dtype, context_tokens: Sequence[int] = ()
    ) -> PreparedView:
        """Everything that is the same for all layers of a step (tables, groups); called once per step and view.

        `context_tokens`: how many context keys each range has; empty when none has any.
        """
        ...


Creator = Callable[[PagePool, CacheSpec, CodecBook, int], AttentionBackend]


def _torch_reasons(spec: CacheSpec, device: torch.device) -> list[str]:
    from pagedvid.attention.torch_backend import unsupported_reasons

    return unsupported_reasons(spec, device)


def _create_torch(pool: PagePool, spec: CacheSpec, book: CodecBook, scratch_bytes: int) -> AttentionBackend:
    from pagedvid.attention.torch_backend import TorchBackend

    return TorchBackend(pool, spec, book, scratch_bytes)


def _triton_reasons(spec: CacheSpec, device: torch.device) -> list[str]:
    if importlib.util.find_spec("triton") is None:
        return ["triton is not installed (pip install triton)"]
    from pagedvid.attention.triton_backend import unsupported_reasons

    return unsupported_reasons(spec, device)


def _create_scratch(pool: PagePool, spec: CacheSpec, book: CodecBook, scratch_bytes: int) -> AttentionBackend:
    from pagedvid.attention.triton_backend import TritonBackend

    return TritonBackend(pool, spec, book, scratch_bytes)


def _create_fused(pool: PagePool, spec: CacheSpec, book: CodecBook, scratch_bytes: int) -> AttentionBackend:
    from pagedvid.attention.fused_backend import FusedBackend

    return FusedBackend(pool, spec, book, scratch_bytes)


_CREATORS: dict[str, tuple[Callable[[CacheSpec, torch.device], list[str]], Creator]] = {
    "torch": (_torch_reasons, _create_torch),
    "scratch": (_triton_reasons, _create_scratch),
    "fused": (_triton_reasons, _create_fused),
}
"""In order of preference: the first that has no reason against it is "auto"."""


def backend_names() -> tuple[str, ...]:
    """Names that `select_backend` accepts."""
    return ("auto", *_CREATORS)


def backend_reasons(spec: CacheSpec, device: torch.device) -> dict[str, list[str]]:
    """Of every backend, why it cannot run on that device; an empty list when it can."""
    return {name: reasons(spec, device) for name, (reasons, _) in _CREATORS.items()}


def select_backend(name: str, pool: PagePool, spec: CacheSpec, book: CodecBook, scratch_bytes: int) -> AttentionBackend:
    """The backend of that name, or the first that can run. Raises BackendError with every backend's reasons."""
    if not isinstance(name, str) or name not in backend_names():
        raise BackendError(f"unknown attention backend {name!r}; allowed are {', '.join(backend_names())}")
    candidates: Sequence[str] = tuple(_CREATORS) if name == "auto" else (name,)
    reasons: dict[str, list[str]] = {}
    for candidate in candidates:
        reasons[candidate] = _CREATORS[candidate][0](spec, pool.device)
        if not reasons[candidate]:
            logger.info("attention backend: %s", candidate)
            return _CREATORS[candidate][1](pool, spec, book, scratch_bytes)
    listed = "; ".join(f"{candidate}: {', '.join(why)}" for candidate, why in reasons.items())
    raise BackendError(f"no attention backend can run on {pool.device}: {listed}")
