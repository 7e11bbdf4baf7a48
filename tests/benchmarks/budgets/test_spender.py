"""Allocations by layer and by head, on a profile made by hand, against a search through all of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import pytest
import torch

from budgets.spender import Spender
from pagedvid.budgets.profile import Profile
from pagedvid.budgets.spend import HeadStorage
from pagedvid.cache.sizes import KVShape
from pagedvid.cache.window import Window

RUNGS = ("mean", "klt0.75", "klt1.5", "klt3")
PAGES = (0, 1, 2, 4)
"""Of 12 rows, for 128 tokens."""
WINDOW = Window(1, 4)
SHAPE = KVShape(2, 2, 64, page_rows=12, tokens_per_frame=16, frames_per_block=8, correction="off")


def spender(seed: int = 0) -> Spender:
    """Two layers of two heads, with errors that fall by random factors."""
    chance = torch.Generator().manual_seed(seed)
    keys, values = (torch.rand(2, 3, 2, 2, len(RUNGS), generator=chance) * 0.6).cumprod(-1)
    windows = torch.rand(3, 2, 2, 2, 4, generator=chance)
    return Spender(Profile("klt", RUNGS, 12, 128, 1, 4, ("a", "b", "c"), keys, values, windows), SHAPE, WINDOW)


Heads = Sequence[Sequence[HeadStorage]]


def tables(heads: Heads) -> Iterator[tuple[int, int, int, int]]:
    """(kind, layer, head, number of the rung)."""
    for layer, of_layer in enumerate(heads):
        for head, stored in enumerate(of_layer):
            yield from (
                (kind, layer, head, RUNGS.index(rung)) for kind, rung in enumerate((stored.keys, stored.values))
            )


def error_of(spending: Spender, heads: Heads) -> float:
    curves = [spending.profile.keys_PLHR.double().mean(0), spending.profile.values_PLHR.double().mean(0)]
    return sum(float(curves[kind][layer, head, rung]) for kind, layer, head, rung in tables(heads))


def pages_of(heads: Heads) -> list[int]:
    """By layer."""
    each = list(tables(heads))
    return [sum(PAGES[rung] for _, of, _, rung in each if of == layer) for layer in range(len(heads))]


def of_rungs(keys: tuple, values: tuple) -> Heads:
    return [
        [HeadStorage(RUNGS[k], RUNGS[v], 4, True) for k, v in zip(*each, strict=True)]
        for each in zip(keys, values, strict=True)
    ]


@pytest.mark.parametrize("num_pages", [4, 12, 20])
def test_layers_share_rungs_and_are_the_best_that_do(num_pages: int) -> None:
    spending, bits = spender(), num_pages * 0.75 / 8
    spent = spending.by_layer(bits)
    heads = spent.heads
    assert sum(pages_of(heads)) <= num_pages
    numbers = range(len(RUNGS))
    alike = (of_rungs(((a, a), (b, b)), ((c, c), (d, d))) for a, b, c, d in product(numbers, numbers, numbers, numbers))
    least = min(error_of(spending, each) for each in alike if sum(pages_of(each)) <= num_pages)
    assert error_of(spending, heads) == pytest.approx(least, rel=1e-6) == spent.error
    assert spent.bits == pytest.approx(sum(pages_of(heads)) * 0.75 / 8)
    assert spent.num_bytes == sum(pages_of(heads)) * 12 * 64 * 5


def test_heads_in_layers_spend_no_layer_s_bytes_on_another() -> None:
    spending = spender(1)
    heads = spending.heads_in_layers(1.5).heads
    assert all(count <= 8 for count in pages_of(heads))
    free = spending.by_head(1.5).heads
    assert sum(pages_of(free)) <= 16
    assert error_of(spending, free) <= error_of(spending, heads)


def test_without_mean_every_head_stores_something() -> None:
    heads = spender(2).without_mean().by_layer(0.75).heads
    assert {stored.keys for of_layer in heads for stored in of_layer} == {"klt0.75"}
