"""The exchanges between ranks: the reference against its definition, token by token, and collectives against it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.distributed as dist

from pagedvid.distributed.exchange import (
    Exchange,
    gather_heads,
    heads_for_tokens,
    piece_of,
    tokens_for_heads,
)
from tests.distributed.ranks import on_ranks

LENGTHS = (12, 7, 2, 1)
"""Tokens of a step; the last ranks may have fewer than the first, or none."""
DTYPES = (torch.float32, torch.bfloat16)
HEADS, HEAD_DIM = 6, 4


def numbered(num_tokens: int, num_heads: int = HEADS, offset: int = 0, dtype=torch.float32) -> torch.Tensor:
    """[T, H, D]: every element another number, so that a misplaced one is noticed."""
    size = num_tokens * num_heads * HEAD_DIM
    return (torch.arange(size) + offset).remainder(251).view(num_tokens, num_heads, HEAD_DIM).to(dtype)


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 6])
@pytest.mark.parametrize("num_tokens", LENGTHS)
def test_the_reference_moves_every_element_to_its_rank(num_tokens, num_ranks):
    whole, own_heads = numbered(num_tokens), HEADS // num_ranks
    parts = [whole[piece_of(rank, num_tokens, num_ranks)] for rank in range(num_ranks)]
    assert sum(len(part) for part in parts) == num_tokens
    by_heads = heads_for_tokens(parts)
    for rank, of_rank in enumerate(by_heads):
        for token in range(num_tokens):
            for head in range(own_heads):
                assert torch.equal(of_rank[token, head], whole[token, rank * own_heads + head])
    for part, back in zip(parts, tokens_for_heads(by_heads), strict=True):
        assert torch.equal(part, back)
    assert torch.equal(gather_heads(by_heads), whole)


def exchanged(num_tokens: int, dtype: torch.dtype, group: dist.ProcessGroup) -> dict[str, object]:
    """What a rank gets; q has twice as many heads as k."""
    exchange = Exchange(group)
    own = piece_of(exchange.rank, num_tokens, exchange.num_ranks)
    q, k = numbered(num_tokens, 2 * HEADS, dtype=dtype), numbered(num_tokens, offset=7, dtype=dtype)
    q_ThD, k_ThD = exchange.heads_for_tokens([q[own], k[own]], num_tokens)
    views = torch.stack([q_ThD, 2 * q_ThD])
    return {
        "heads": (q_ThD, k_ThD),
        "tokens": exchange.tokens_for_heads(q_ThD),
        "views": exchange.tokens_for_heads(views),
        "gathered": exchange.gather_heads(k_ThD),
        "traffic": (exchange.traffic.num_exchanges, exchange.traffic.sent_bytes),
    }


@pytest.mark.parametrize("num_ranks", [2, 3])
def test_collectives_do_what_the_reference_does(num_ranks):
    cases = {f"{n}, {dtype}": (n, dtype) for n in LENGTHS for dtype in DTYPES}
    got = on_ranks(num_ranks, {name: partial(exchanged, *case) for name, case in cases.items()})
    for name, (num_tokens, dtype) in cases.items():
        q, k = numbered(num_tokens, 2 * HEADS, dtype=dtype), numbered(num_tokens, offset=7, dtype=dtype)
        pieces = [piece_of(rank, num_tokens, num_ranks) for rank in range(num_ranks)]
        q_heads, k_heads = (heads_for_tokens([x[piece] for piece in pieces]) for x in (q, k))
        q_tokens = tokens_for_heads(q_heads)
        for rank, of_rank in enumerate(got[name]):
            assert torch.equal(of_rank["heads"][0], q_heads[rank]) and torch.equal(of_rank["heads"][1], k_heads[rank])
            assert torch.equal(of_rank["tokens"], q_tokens[rank])
            assert torch.equal(of_rank["views"], torch.stack([q_tokens[rank], 2 * q_tokens[rank]]))
            assert torch.equal(of_rank["gathered"], k)
            padded, own_heads = -(-num_tokens // num_ranks), HEADS // num_ranks
            values = padded * 3 * own_heads + 3 * padded * 2 * own_heads + num_tokens * own_heads
            sent_bytes = (num_ranks - 1) * values * HEAD_DIM * dtype.itemsize
            assert of_rank["traffic"] == (4, sent_bytes)
