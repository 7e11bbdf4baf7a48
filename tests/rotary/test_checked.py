"""Rotary tables of hosts: what is refused, what is accepted, and that a stream keeps its rope."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.errors import ShapeError, StateError
from pagedvid.rotary.checked import CheckedRope, Ropes
from tests.attention.reference import TableRope
from tests.attention.scenes import HEAD_DIM, commit_all, make_cache

TOKENS, NUM_PAIRS = 20, HEAD_DIM // 2
RIGHT = TableRope("half", HEAD_DIM)


class Given:
    """A rope whose tables are `make` of the right ones."""

    layout = "half"

    def __init__(self, make) -> None:
        self._make = make

    def tables(self, first_token: int, num_tokens: int):
        return self._make(*RIGHT.tables(first_token, num_tokens))


def step_with(rope, num_streams: int = 1) -> Tensor:
    cache = make_cache("int2")
    streams = [cache.open(Window(1, 2), TOKENS) for _ in range(num_streams)]
    q, k, v = torch.randn(3, num_streams * TOKENS, 2, HEAD_DIM, generator=torch.Generator().manual_seed(0)).unbind()
    with cache.commit(streams) as step:
        outs = [step.attend(layer, q, k, v, rope) for layer in range(2)]
    return outs[0]


class Nameless:
    def tables(self, first_token: int, num_tokens: int):
        return RIGHT.tables(first_token, num_tokens)


REFUSED = {
    "a function": (RIGHT.tables, "the rope is a method with layout None; give an object with a layout"),
    "a tensor": (torch.zeros(TOKENS, NUM_PAIRS), "the rope is a Tensor"),
    "a pair": ((torch.zeros(1), torch.zeros(1)), "the rope is a tuple"),
    "no layout": (Nameless(), r"with layout None; give an object with a layout \('half' or 'interleaved'\)"),
    "another layout": (TableRope("neox", HEAD_DIM), "with layout 'neox'"),
    "too many rows": (Given(lambda c, s: (c.repeat(2, 1), s.repeat(2, 1))), r"gave a table of shape \(40, 32\)"),
    "too few rows": (Given(lambda c, s: (c[1:], s[1:])), r"rope.tables\(0, 20\) gave .* \(19, 32\); .* \(20, 32\)"),
    "too few rows of one": (Given(lambda c, s: (c, s[1:])), r"shape \(19, 32\)"),
    "doubled columns": (Given(lambda c, s: (c.repeat(1, 2), s.repeat(1, 2))), "64 columns; head_dim 64 needs 32"),
    "an axis more": (Given(lambda c, s: (c[:, None], s[:, None])), r"shape \(20, 1, 32\)"),
    "complex": (Given(lambda c, s: (torch.complex(c, s), s)), "gave cos in torch.complex64"),
    "whole numbers": (Given(lambda c, s: (c.long(), s.long())), "gave cos in torch.int64"),
    "one table": (Given(lambda c, s: torch.cat([c, s])), r"gave a Tensor; it must return the pair \(cos, sin\)"),
    "three tables": (Given(lambda c, s: (c, s, s)), "gave a tuple; it must return the pair"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_tables_for_these_tokens_is_refused(name: str) -> None:
    rope, message = REFUSED[name]
    with pytest.raises(ShapeError, match=message):
        step_with(rope)


ACCEPTED = {
    "numpy": lambda c, s: (c.numpy(), s.numpy()),
    "a list": lambda c, s: [c, s],
    "float64": lambda c, s: (c.double(), s.double()),
    "columns innermost": lambda c, s: (c.T.contiguous().T, s.T.contiguous().T),
    "with gradients": lambda c, s: (c.clone().requires_grad_(), s.clone().requires_grad_()),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_tables_of_other_kinds_are_accepted(name: str) -> None:
    assert torch.equal(step_with(Given(ACCEPTED[name]), 2), step_with(RIGHT, 2))


def test_the_chunk_ahead_is_asked_for_by_name_when_tables_end() -> None:
    """The correction is measured on queries at the positions of the next chunk."""

    class Ending(TableRope):
        def tables(self, first_token: int, num_tokens: int):
            return tuple(table[: max(0, 30 - first_token)] for table in super().tables(first_token, num_tokens))

    with pytest.raises(ShapeError, match=r"rope.tables\(20, 20\) gave .* \(10, 32\).* one chunk beyond the last one"):
        step_with(Ending("half", HEAD_DIM))


@pytest.mark.parametrize("keys_arrive", ["before_rotary", "rotated"])
@pytest.mark.parametrize("codec", ["int2", "int2-post"])
def test_a_stream_is_read_under_the_rope_it_was_committed_under(codec: str, keys_arrive: str) -> None:
    cache = make_cache(codec, keys_arrive=keys_arrive)
    stream = cache.open(Window(1, 2), TOKENS)
    commit_all(cache, stream, [TOKENS, TOKENS], 1, RIGHT)
    qkv = torch.randn(3, TOKENS, 2, HEAD_DIM).unbind()
    with cache.denoise([stream]) as step:  # another object with the same tables
        step.attend(0, *qkv, TableRope("half", HEAD_DIM))
    others = [None, TableRope("interleaved", HEAD_DIM), Given(lambda c, s: (c, -s))]
    for rope in others:
        with cache.denoise([stream]) as step, pytest.raises(StateError, match="keys were stored under a TableRope"):
            step.attend(0, *qkv, rope)
    bare = cache.open(Window(1, 2), TOKENS)
    commit_all(cache, bare, [TOKENS], 1, None)
    with cache.denoise([bare]) as step, pytest.raises(StateError, match="stored under no rope and are read under a"):
        step.attend(0, *qkv, RIGHT)


def test_layers_may_have_ropes_of_their_own() -> None:
    """Such as a local and a global one."""
    ropes = [RIGHT, Given(lambda c, s: (c, -s))]
    cache = make_cache("int2", debug_checks=True)
    stream = cache.open(Window(1, 2), TOKENS)
    for seed in range(3):
        q, k, v = torch.randn(3, TOKENS, 2, HEAD_DIM, generator=torch.Generator().manual_seed(seed)).unbind()
        with cache.commit([stream]) as step:
            for layer, rope in enumerate(ropes):
                step.attend(layer, q, k, v, rope)


def test_a_rope_is_wrapped_once() -> None:
    ropes = Ropes(NUM_PAIRS, torch.device("cpu"))
    checked = ropes.checked(RIGHT)
    assert isinstance(checked, CheckedRope) and ropes.checked(RIGHT) is checked and ropes.checked(checked) is checked
    assert ropes.on_device(RIGHT) is checked


def test_a_stream_keeps_one_rope_alive_however_many_its_host_makes() -> None:
    cache = make_cache("int2")
    stream = cache.open(Window(0, 3), TOKENS)
    for seed in range(6):
        commit_all(cache, stream, [TOKENS], seed, TableRope("half", HEAD_DIM))
    assert len({id(rope) for chunk in stream.chunks() for rope in chunk.ropes.values()}) == 1
