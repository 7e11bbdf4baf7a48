"""Everything that stores keys and values in the fidelity tables, published quantizers and pagedvid's codecs alike.

Bits are those of a chunk as it would lie in memory: for pagedvid whole pages with their metadata and padding. Tables
that belong to the model and serve every stream (the KLT bases) are not part of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from pagedvid.codecs.assignment import CodecPair
from pagedvid.codecs.base import Codec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.channel.spec import ChannelSpec
from pagedvid.codecs.page import PageFormat
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.token.codec import TokenCodec
from pagedvid.codecs.token.spec import TokenSpec
from peers.kivi import kivi_keys, kivi_values
from peers.quant_videogen import quant_videogen
from peers.quarot import quarot
from peers.rtn import rtn
from peers.stored import Stored
from peers.turboquant import turboquant

QVG_SPAN_RATIO = 36
"""Tokens per cluster in the paper's smallest span (9360 tokens, 256 clusters)."""
PLAIN_PAGE_BITS = 256
"""Code bits of a channel in a default page: 128 tokens of int2."""
Quantize = Callable[[Tensor], Stored]
Store = Callable[[str, int, Tensor], Stored]
"""(kind, layer, x [H, n, D]) -> what comes back."""


@dataclass(frozen=True)
class Peer:
    """A published quantizer."""

    name: str
    keys: Quantize
    values: Quantize
    keys_rotated: bool = True
    """Whether keys are stored after rotary embedding."""
    uniform: bool = True
    """Whether levels are uniform, so that there are steps."""
    whole_span: bool = False
    """Whether it gains from more than one chunk at once."""

    def quantize(self, kind: str) -> Quantize:
        """Of "keys" or "values"."""
        return self.keys if kind == "keys" else self.values


@dataclass(frozen=True)
class Paged:
    """A pair of pagedvid's codecs."""

    name: str
    pair: CodecPair
    rows: int
    """Of a page."""


@dataclass(frozen=True)
class Scheme:
    """One row of a table of the tensor level."""

    name: str
    store: Store
    keys_rotated: bool
    whole_span: bool = False
    """Whether all cached chunks are stored at once."""


def peers(span_tokens: int, head_dim: int) -> list[Peer]:
    """The published quantizers. `span_tokens`: how many tokens share one set of k-means clusters."""

    def both(name: str, function: Callable[..., Stored], uniform: bool = True, **how: object) -> Peer:
        return Peer(name, *[partial(function, **how)] * 2, uniform=uniform)

    rows = [both(f"RTN{bits} g{group}", rtn, bits=bits, group=group) for bits, group in ((2, 64), (2, 32), (4, 64))]
    rows += [both(f"QuaRot{bits} g64", quarot, bits=bits, group=64) for bits in (2, 4)]
    rows += [both(f"TurboQuant{bits}", turboquant, uniform=False, bits=bits) for bits in (2, 3)]
    kivi = partial(kivi_keys, bits=2, group=64), partial(kivi_values, bits=2, group=64)
    rows += [Peer("KIVI2 post", *kivi), Peer("KIVI2 pre", *kivi, keys_rotated=False)]
    clusters = min(max(2, -(-span_tokens // QVG_SPAN_RATIO)), 256)
    for stages, block, grid in ((1, 64, "ternary"), (1, 64, "asymmetric"), (4, 16, "ternary")):
        name = f"QVG{'-Pro' if stages > 1 else ''} {'tern' if grid == 'ternary' else 'asym'}"
        how = {"num_stages": stages, "block": min(block, head_dim), "grid": grid, "num_clusters": clusters}
        store = partial(quant_videogen, **how)  # type: ignore[arg-type]
        rows.append(Peer(name, store, store, keys_rotated=False, uniform=False, whole_span=True))
    return rows


def paged(codecs: str, head_dim: int) -> Paged:
    """Of "int2", or "int4/int2" for keys and values.

    Pages suit the keys: with other metadata than int2, they still hold as many tokens.
    """
    pair = CodecPair.read(codecs)
    keys, rows = pair.keys, pair.keys.page_rows
    tokens = int(PLAIN_PAGE_BITS / keys.bits)
    if isinstance(keys, ChannelSpec):
        rows = PLAIN_PAGE_BITS // 8 + keys.metadata_rows
    elif isinstance(keys, TokenSpec):
        rows = -(-tokens * keys.token_bytes(PageFormat(head_dim)) // head_dim)
    return Paged(codecs, pair, rows)


def peer_scheme(peer: Peer) -> Scheme:
    """A peer at the tensor level."""
    return Scheme(peer.name, lambda kind, layer, x: peer.quantize(kind)(x), peer.keys_rotated, peer.whole_span)


def paged_scheme(codecs: Paged, page: PageFormat, book: CodecBook) -> Scheme:
    """A pair of codecs at the tensor level. `book`: made for this page."""

    def store(kind: str, layer: int, x_HnD: Tensor) -> Stored:
        return through_pages(page, book.codec(codecs.pair.of(kind), kind, layer, slice(0, len(x_HnD))), x_HnD)

    return Scheme(codecs.name, store, codecs.pair.keys.stores_rotated)


def through_pages(page: PageFormat, codec: Codec, x_HnD: Tensor) -> Stored:
    """Encoded, decoded, and the steps token by token where there are any."""
    num_rows, num_tokens, head_dim = x_HnD.shape
    records = codec.encode(x_HnD)
    out = torch.empty(num_rows, codec.spec.padded_tokens(page, num_tokens), head_dim)
    values = codec.decode(records, num_tokens, out)
    steps = _token_steps(page, codec, records, num_tokens)
    return Stored(values, bits_per_value(page, codec.name, num_tokens), steps, codec.axes)


def _token_steps(page: PageFormat, codec: Codec, records: Tensor, num_tokens: int) -> Tensor | None:
    """Squared, [H, n, D]."""
    if isinstance(codec, TokenCodec):
        steps = codec.token_step_sizes(records, num_tokens)
        return steps.square().repeat_interleave(page.head_dim // steps.shape[-1], dim=-1)
    size, parts = codec.page_tokens, []
    for first in range(0, num_tokens, size):
        count = min(size, num_tokens - first)
        step = codec.mean_square_step_sizes(records, count, first)
        if step is None:
            return None
        parts.append(step[:, None].expand(-1, count, -1))
    return torch.cat(parts, dim=1)


def bits_per_value(page: PageFormat, codec: str, num_tokens: int) -> float:
    """Stored bits of an element of a chunk, padding of its last page included."""
    return 8 * page.num_bytes * read_codec(codec).num_pages(page, num_tokens) / (num_tokens * page.head_dim)
