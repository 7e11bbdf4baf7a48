"""Attention backends: what differs between them, and how `auto` chooses one.

Both read and write pages in the same steps (history.py, store.py):

    triton    kernels that decode and encode pages, arrange and merge; for CUDA devices
    torch     PyTorch operations, the readable reference of each kernel; for any device, and the choice on a CPU

A backend that cannot run here says why, instead of failing later. The dense attention between decoding and merging is
done by the first library that can run (dense/choice.py).
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence

import torch

from pagedvid.attention.batches import Batch, batches_of
from pagedvid.attention.dense.base import DenseAttention, Fp8Attention
from pagedvid.attention.dense.choice import choose_fp8_provider, choose_provider, fp8_is_faster, provider_reasons
from pagedvid.attention.history import PreparedStep, Tools
from pagedvid.attention.layer_reads import ReadPlanner
from pagedvid.attention.projected_step import ProjectedStep
from pagedvid.attention.projection import StepProjection
from pagedvid.attention.rotation import Rotation
from pagedvid.attention.scratch import Scratch
from pagedvid.attention.store import LayerStore
from pagedvid.cache.plan import StepPlan
from pagedvid.cache.pool import PagePool
from pagedvid.cache.spec import CacheSpec
from pagedvid.codecs.book import CodecBook
from pagedvid.devices import capability
from pagedvid.errors import BackendError

logger = logging.getLogger(__name__)

BACKENDS = ("triton", "torch")
"""In order of preference: "auto" takes the first that can run."""
OLDEST_CAPABILITY = (8, 0)
"""BF16 on tensor cores."""
KEPT_STEPS = 8
"""Prepared steps kept: enough for the conditional and unconditional steps of a few batches."""


class AttentionBackend:
    """Reads and writes the pages of one cache."""

    def __init__(
        self,
        name: str,
        pool: PagePool,
        spec: CacheSpec,
        book: CodecBook,
        scratch_bytes: int,
        history_dtype: str = "bf16",
    ) -> None:
        """`name`: one of BACKENDS, and one that can run here (`select_backend`). `scratch_bytes`: for decoded keys and
        values. `history_dtype`: see `PagedKVCache`."""
        uses_kernels = name == "triton"
        self.name = name
        self.store = LayerStore(pool, spec, book, uses_kernels)
        """Writes and reads whole layers of chunks."""
        planner = ReadPlanner(pool, spec, book, scratch_bytes, uses_kernels)
        self._tools = Tools(planner, Scratch(pool.device), *_operations(uses_kernels), history_dtype)
        self._dense: dict[torch.dtype, tuple[DenseAttention, Fp8Attention | None]] = {}
        self._prepared: OrderedDict[Hashable, PreparedStep] = OrderedDict()
        # The constants of kernels are made now, not during the first steps.
        for codecs in spec.codecs.all() if uses_kernels else ():
            for codec in book.of_chunks(codecs, spec.num_layers):
                book.access(codec, pool.device, uses_kernels)

    def prepare(
        self,
        plan: StepPlan,
        rotation: Rotation,
        dtype: torch.dtype,
        context_tokens: Sequence[int] = (),
        projection: StepProjection | None = None,
    ) -> PreparedStep:
        """Everything that is the same for all layers of a step; called once per step and view.

        The denoise steps of the same chunks over the same history share it, so that nothing within a step waits for the
        host or the device. `dtype`: of queries, keys and values. `context_tokens`: number of context keys of each
        range; empty when no range has any. `projection`: the view is through these cameras, not the rotary one.
        """
        if projection is not None:  # its cameras may differ from step to step
            return ProjectedStep(*self._arguments(plan, rotation, dtype, context_tokens), projection=projection)
        key = (plan_key(plan), id(rotation.stored_by), dtype, tuple(context_tokens))
        if key not in self._prepared:  # a kept step keeps its rope alive, so that the id is not reused
            self._prepared[key] = PreparedStep(*self._arguments(plan, rotation, dtype, context_tokens))
            if len(self._prepared) > KEPT_STEPS:
                self._prepared.popitem(last=False)
        self._prepared.move_to_end(key)
        return self._prepared[key]

    def _arguments(
        self, plan: StepPlan, rotation: Rotation, dtype: torch.dtype, context_tokens: Sequence[int]
    ) -> tuple[Tools, DenseAttention, Fp8Attention | None, torch.dtype, list[Batch], Rotation]:
        planner = self._tools.planner
        device = planner.pool.device
        if dtype not in self._dense:
            given = device, dtype, planner.spec.head_dim
            wants_fp8 = self._tools.history_dtype == "fp8"
            uses_fp8 = wants_fp8 or (self._tools.history_dtype == "auto" and fp8_is_faster(*given))
            self._dense[dtype] = choose_provider(*given), choose_fp8_provider(*given) if uses_fp8 else None
        batches = batches_of(
            plan, context_tokens, device, lambda range_, num_current: planner.most_ranges(range_, num_current, dtype)
        )
        return self._tools, *self._dense[dtype], dtype, batches, rotation


def _operations(uses_kernels: bool) -> tuple[Callable[..., None], Callable[..., None]]:
    """`arrange` and `merge`; kernels are imported only if they are used."""
    if uses_kernels:
        from pagedvid.attention.kernels import merge
        from pagedvid.rotary import kernels

        return kernels.arrange, merge.merge
    from pagedvid.attention import merge as reference
    from pagedvid.rotary import tables

    return tables.arrange, reference.merge


def plan_key(plan: StepPlan) -> Hashable:
    """Ranges, positions and chunks of a step. Chunk ids are never reused, but heads let go of chunks."""
    return tuple(
        (
            r.num_tokens,
            r.first_token,
            r.current,
            tuple((read.chunk.id, read.chunk.codecs, read.first_token) for read in r.reads),
        )
        for r in plan.ranges
    )


def backend_names() -> tuple[str, ...]:
    """Names that `select_backend` accepts."""
    return ("auto", *BACKENDS)


def backend_reasons(spec: CacheSpec, device: torch.device) -> dict[str, list[str]]:
    """For every backend, why it cannot run on that device; an empty list when it can."""
    return {name: _reasons(name, spec, device) for name in BACKENDS}


def select_backend(
    name: str, pool: PagePool, spec: CacheSpec, book: CodecBook, scratch_bytes: int, history_dtype: str = "bf16"
) -> AttentionBackend:
    """The backend of that name, or the first that can run. Raises BackendError with every backend's reasons."""
    if not isinstance(name, str) or name not in backend_names():
        raise BackendError(f"unknown attention backend {name!r}; allowed are {', '.join(backend_names())}")
    reasons: dict[str, list[str]] = {}
    for candidate in BACKENDS if name == "auto" else (name,):
        reasons[candidate] = _reasons(candidate, spec, pool.device)
        if not reasons[candidate]:
            logger.info("attention backend: %s", candidate)
            return AttentionBackend(candidate, pool, spec, book, scratch_bytes, history_dtype)
    listed = "; ".join(f"{candidate}: {', '.join(why)}" for candidate, why in reasons.items())
    raise BackendError(f"no attention backend can run on {pool.device}: {listed}")


def _reasons(name: str, spec: CacheSpec, device: torch.device) -> list[str]:
    reasons = _kernel_reasons(spec, device) if name == "triton" else []
    if reasons:
        return reasons
    dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
    by_provider = provider_reasons(device, dtype, spec.head_dim)
    if all(by_provider.values()):
        return [f"no library for dense keys runs on {device.type} with head_dim {spec.head_dim}; see `pagedvid env`"]
    return []


def _kernel_reasons(spec: CacheSpec, device: torch.device) -> list[str]:
    try:
        from pagedvid.codecs.triton_common import head_dim_reasons
    except ModuleNotFoundError as error:
        return [f"{error.name} is not installed (pip install {error.name})"]
    if device.type != "cuda":
        return [f"it runs on cuda, not on {device.type}"]
    reasons: list[str] = head_dim_reasons(spec.head_dim)
    found = capability(device)
    if found is None:
        return [f"PyTorch can use no device {device} here"]
    if found < OLDEST_CAPABILITY:
        reasons.append("kernels need compute capability 8.0 or newer")
    return reasons
