"""Bits by layer and by head at equal bytes.

uniform klt        one codec for keys and one for values, bits 1:2
by layer, today    layers have rungs of their own, on the pages of the uniform codecs: the `layers` of a configuration
by layer           the same on small pages, and with the rung of no pages
heads in layers    every layer has as many bytes, spent on its heads
by head            all bytes are spent on all heads
by head + windows  the same, and each head may look back less far
int by head        by head on int2, int4, int8 and means, for models without klt tables
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from budgets.spender import Spender
from budgets.video import Row
from lib.caches import Case
from lib.lab import Lab
from pagedvid.budgets.profile import Profile
from pagedvid.budgets.spend import Spending
from pagedvid.cache.head_codecs import codecs_by_head
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.models.registry import model_tables
from pagedvid.paged_kv_cache import PagedKVCache

UNIFORM = {2.25: "klt1.5/klt3", 1.5: "klt1/klt2", 1.0: "klt0.6875/klt1.375", 0.75: "klt0.5/klt1", 0.5: "klt0.5"}
"""By budget. Pages suit the codec of the keys, so that the one at 1.0 takes 1.03 bits; klt0.5 is the smallest."""
UNIFORM_NAME, BY_HEAD, WITH_WINDOWS = "uniform klt", "by head", "by head + windows"
TODAY_BITS = 2.25
"""The smallest budget at which the pages of its uniform codecs leave layers a choice among the rungs."""


@dataclass(frozen=True)
class Pages:
    """Codecs, and pages that suit them."""

    codecs: StreamCodecs
    page_rows: int

    @staticmethod
    def uniform(codec: str) -> Pages:
        """The same for all heads."""
        codecs = StreamCodecs(codec)
        return Pages(codecs, codecs.page_rows)

    def cache(self, lab: Lab) -> PagedKVCache:
        any_klt = lab.caches.spec(Case(UNIFORM[TODAY_BITS]))
        spec = replace(any_klt, codecs=self.codecs, page_rows=self.page_rows, correction=self.codecs.correction)
        memory = len(lab.requests) * lab.caches.stream_bytes(spec)
        return PagedKVCache(spec, memory, tables=model_tables("demo", lab.weights))

    def bits(self, lab: Lab, cache: PagedKVCache) -> float:
        return lab.caches.bits(cache)


def bits_rows(lab: Lab, klt: Profile, plain: Profile, budgets: Sequence[float]) -> list[Row]:
    """Every method at every budget that it can keep. `klt`, `plain`: profiles of the klt and the int ladder."""
    rows = []
    for bits in budgets:
        rows += uniform_rows(bits)
        if bits >= TODAY_BITS:
            today = Pages.uniform(UNIFORM[TODAY_BITS]).page_rows
            of_layers = spender(lab, klt, today).without_mean()
            rows.append(Row("by layer, today", bits, pages(of_layers, of_layers.by_layer(bits))))
        small = spender(lab, klt, klt.page_rows)
        rows.append(Row("by layer", bits, pages(small, small.by_layer(bits))))
        rows.append(Row("heads in layers", bits, pages(small, small.heads_in_layers(bits))))
        rows += by_head_rows(lab, klt, bits)
        ints = spender(lab, plain, plain.page_rows)
        rows.append(Row("int by head", bits, pages(ints, ints.by_head(bits))))
    return rows


def uniform_rows(bits: float) -> list[Row]:
    """The uniform codecs of a budget, if there are any."""
    return [Row(UNIFORM_NAME, bits, Pages.uniform(UNIFORM[bits]))] if bits in UNIFORM else []


def by_head_rows(lab: Lab, klt: Profile, bits: float) -> list[Row]:
    """By head, with the stream's window for all heads, and with windows by head."""
    small = spender(lab, klt, klt.page_rows)
    return [
        Row(BY_HEAD, bits, pages(small, small.by_head(bits))),
        Row(WITH_WINDOWS, bits, pages(small, small.by_head(bits, "per_head"))),
    ]


def spender(lab: Lab, profile: Profile, page_rows: int) -> Spender:
    """Spends by this profile on pages of so many rows."""
    shape = lab.caches.spec(Case(UNIFORM[TODAY_BITS])).shape
    return Spender(profile, replace(shape, page_rows=page_rows), lab.window)


def pages(spender: Spender, spending: Spending) -> Pages:
    """Heads stored so, on the pages of the spender."""
    return Pages(codecs_by_head(spending, spender.profile.rungs[1]), spender.shape.page_rows)
