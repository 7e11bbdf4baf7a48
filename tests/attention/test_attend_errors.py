"""Calls of `step.attend` that are refused."""

from __future__ import annotations

import pytest
import torch

from pagedvid.attention.step import Step
from pagedvid.cache.window import Window
from pagedvid.errors import ShapeError, StateError
from tests.attention.reference import (
    TableRope,
)
from tests.attention.scenes import make_cache


def qkv(num_tokens: int = 20, query_heads: int = 6, kv_heads: int = 2, head_dim: int = 64, dtype=torch.float32):
    return [torch.zeros(num_tokens, heads, head_dim, dtype=dtype) for heads in (query_heads, kv_heads, kv_heads)]


BAD_CALLS = {
    "layer": (2, qkv(), "layer 2 does not exist; the cache has layers 0 to 1"),
    "negative layer": (-1, qkv(), "layer -1 does not exist"),
    "tokens": (0, qkv(num_tokens=19), r"q has shape \(19, 6, 64\); .* are \(20, 6, 64\)"),
    "query heads": (0, qkv(query_heads=2), r"q has shape \(20, 2, 64\); .* are \(20, 6, 64\)"),
    "KV heads": (0, qkv(kv_heads=6), r"k has shape \(20, 6, 64\); .* are \(20, 2, 64\)"),
    "head_dim": (0, qkv(head_dim=32), r"q has shape \(20, 6, 32\)"),
    "type": (0, qkv(dtype=torch.float64), "q is torch.float64; .* torch.float32, torch.bfloat16, torch.float16"),
    "mixed types": (0, [*qkv()[:2], qkv(dtype=torch.bfloat16)[2]], "v is torch.bfloat16"),
    "device": (0, [x.to("meta") for x in qkv()], "q is on meta, the pool on cpu; move one of them"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_tensors_that_do_not_fit_are_refused(name):
    layer, tensors, message = BAD_CALLS[name]
    cache = make_cache(group=3)
    stream = cache.open(Window(1, 1), 20)
    with pytest.raises(ShapeError, match=message), cache.commit([stream]) as step:
        step.attend(layer, *tensors)
    assert list(stream.chunks()) == []


def test_rotary_tables_that_do_not_fit_are_refused():
    cache = make_cache(group=3)
    with (
        pytest.raises(ShapeError, match="rotary tables have 16 columns; head_dim 64 needs 32"),
        cache.denoise([cache.open(Window(1, 1), 20)]) as step,
    ):
        step.attend(0, *qkv(), TableRope("half", 32))


@pytest.mark.parametrize("fails", [False, True])
def test_a_step_cannot_be_used_after_it_has_ended(fails):
    cache = make_cache(group=3, debug_checks=True)
    stream = cache.open(Window(1, 1), 20)
    kept: list[Step] = []

    def begin() -> None:
        with cache.commit([stream]) as step:
            kept.append(step)
            step.attend(0, *qkv())
            if fails:
                raise KeyError
            step.attend(1, *qkv())

    if fails:
        with pytest.raises(KeyError):
            begin()
    else:
        begin()
    with pytest.raises(StateError, match="this step has ended"):
        kept[0].attend(1, *qkv())
