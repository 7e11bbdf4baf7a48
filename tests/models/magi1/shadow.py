"""What quantized pages do to attention, measured beside an exact run: the same rounds, queries and keys, other codecs.

A `ShadowedCache` is a lossless cache that the engine runs on. Every step is repeated in its shadows, which store other
codecs; their outputs are compared and thrown away, so all of them see the same video. The attention mass on stored keys
is measured by attention itself: values that are 1 in pages and 0 in the current step (a constant is stored exactly).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from pagedvid.attention.step import Step
from pagedvid.cache.plan import QueryRange
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.stream import Stream
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.paged_kv_cache import PagedKVCache

VARIANTS = (("fp32", "off"), ("int2", "off"), ("int2", "formula"), ("int2", "measured"))
Variant = tuple[str, str]
"""Codec and correction."""


@dataclass
class Errors:
    """Of one variant, over all layers of all ranges that read pages (in rounds that store nothing)."""

    relative: list[float] = field(default_factory=list)
    """|output - exact| / |exact|."""
    mass: list[float] = field(default_factory=list)
    """Attention mass on stored keys, mean over queries and heads."""

    @property
    def mean_relative(self) -> float:
        return sum(self.relative) / len(self.relative)

    def mean_mass_shift(self, exact: Errors) -> float:
        """How much more mass than in the exact run."""
        return (sum(self.mass) - sum(exact.mass)) / len(self.mass)


class ShadowedCache(PagedKVCache):
    """See the module docstring; `errors` has the result."""

    def __init__(self, spec: CacheSpec, memory: int | str, variants: Sequence[Variant] = VARIANTS) -> None:
        super().__init__(spec, memory)
        self.shadows = {
            (variant, what): PagedKVCache(replace(spec, codecs=StreamCodecs(variant[0]), correction=variant[1]), memory)
            for variant in variants
            for what in ("output", "mass")
        }
        self.errors: defaultdict[Variant, Errors] = defaultdict(Errors)
        self._twins: dict[Any, dict[int, Stream]] = {key: {} for key in self.shadows}

    def open(self, *arguments: Any, **named: Any) -> Stream:
        stream = super().open(*arguments, **named)
        for key, shadow in self.shadows.items():
            self._twins[key][stream.id] = shadow.open(*arguments, **named)
        return stream

    def release(self, stream: Stream) -> None:
        for key, shadow in self.shadows.items():
            shadow.release(self._twins[key].pop(stream.id))
        super().release(stream)

    def drop(self, stream: Stream, chunk_indices: Sequence[int]) -> None:
        for key, shadow in self.shadows.items():
            shadow.drop(self._twins[key][stream.id], chunk_indices)
        super().drop(stream, chunk_indices)

    @contextmanager
    def step(self, ranges: Sequence[QueryRange]) -> Iterator[Any]:
        with ExitStack() as stack:
            exact = stack.enter_context(super().step(ranges))
            shadows = {}
            for key, shadow in self.shadows.items():
                twins = [replace(asked, stream=self._twins[key][asked.stream.id]) for asked in ranges]
                shadows[key] = stack.enter_context(shadow.step(twins))
            yield SimpleNamespace(attend=lambda *arguments, **named: self._attend(exact, shadows, *arguments, **named))

    def _attend(
        self, exact: Step, shadows: dict[Any, Step], layer: int, q: Tensor, k: Tensor, v: Tensor, rope: Any
    ) -> Tensor:
        out = exact.attend(layer, q, k, v, rope)
        stored = torch.zeros_like(v)
        for part in exact.plan.ranges:
            stored[part.start : part.stop] = float(bool(part.writes))
        for (variant, what), step in shadows.items():
            other = step.attend(layer, q, k, v if what == "output" else stored, rope)
            if exact.plan.pending:
                continue
            for part in exact.plan.ranges:
                if part.reads:
                    rows = slice(part.start, part.stop)
                    self._note(self.errors[variant], what, other[rows], out[rows])
        return out

    @staticmethod
    def _note(errors: Errors, what: str, other: Tensor, exact: Tensor) -> None:
        if what == "mass":
            errors.mass.append(float(other.mean()))
        else:
            errors.relative.append(float((other - exact).norm() / exact.norm()))
