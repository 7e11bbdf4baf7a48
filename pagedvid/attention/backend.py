"""Attention backends: their protocol, and how `auto` chooses one.

To add a backend, write one file with a class that satisfies `AttentionBackend` and one line in `_BACKENDS`. The file is
imported only when the backend is asked for. A backend that cannot run here says why, instead of failing later.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

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

        q, k and v are the model's; the view rotates or maps them. Modifies neither its inputs nor any page.
        """
        ...


class AttentionBackend(Protocol):
    """Attention over pages, current keys and context keys."""

    name: str
    store: LayerStore
    """Writes and reads whole layers of chunks."""

    @staticmethod
    def unsupported_reasons(spec: CacheSpec, device: torch.device) -> list[str]:
        """Why this backend cannot run on that device; empty when it can."""
        ...

    def prepare(
        self, plan: StepPlan, view: Rotation | StepProjection, dtype: torch.dtype, context_tokens: Sequence[int] = ()
    ) -> PreparedView:
        """Everything that is the same for all layers of a step (tables, groups); called once per step and view.

        `context_tokens`: number of context keys of each range; empty when no range has any.
        """
        ...


_BACKENDS = {
    "torch": "pagedvid.attention.torch_backend:TorchBackend",
    "scratch": "pagedvid.attention.triton_backend:TritonBackend",
    "fused": "pagedvid.attention.fused_backend:FusedBackend",
}
"""In order of preference: "auto" takes the first that can run."""


def backend_names() -> tuple[str, ...]:
    """Names that `select_backend` accepts."""
    return ("auto", *_BACKENDS)


def backend_reasons(spec: CacheSpec, device: torch.device) -> dict[str, list[str]]:
    """For every backend, why it cannot run on that device; an empty list when it can."""
    return {name: _reasons(name, spec, device) for name in _BACKENDS}


def select_backend(name: str, pool: PagePool, spec: CacheSpec, book: CodecBook, scratch_bytes: int) -> AttentionBackend:
    """The backend of that name, or the first that can run. Raises BackendError with every backend's reasons."""
    if not isinstance(name, str) or name not in backend_names():
        raise BackendError(f"unknown attention backend {name!r}; allowed are {', '.join(backend_names())}")
    candidates: Sequence[str] = tuple(_BACKENDS) if name == "auto" else (name,)
    reasons: dict[str, list[str]] = {}
    for candidate in candidates:
        reasons[candidate] = _reasons(candidate, spec, pool.device)
        if not reasons[candidate]:
            logger.info("attention backend: %s", candidate)
            backend: AttentionBackend = _backend_class(candidate)(pool, spec, book, scratch_bytes)
            return backend
    listed = "; ".join(f"{candidate}: {', '.join(why)}" for candidate, why in reasons.items())
    raise BackendError(f"no attention backend can run on {pool.device}: {listed}")


def _reasons(name: str, spec: CacheSpec, device: torch.device) -> list[str]:
    try:
        backend = _backend_class(name)
    except ModuleNotFoundError as error:
        return [f"{error.name} is not installed (pip install {error.name})"]
    reasons: list[str] = backend.unsupported_reasons(spec, device)
    return reasons


def _backend_class(name: str) -> Any:
    module, _, kind = _BACKENDS[name].partition(":")
    return getattr(import_module(module), kind)
