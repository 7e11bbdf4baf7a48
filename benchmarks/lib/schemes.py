"""Published quantizers and pagedvid's codecs as schemes: one way to store the keys and values of one layer.

Bits are those of a chunk in memory: for pagedvid, whole pages with their metadata and padding. Tables that belong to
the model and serve every stream (the KLT bases) do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.codecs.assignment import split_pair
from pagedvid.codecs.base import Codec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.page import PageFormat, page_rows_for, read_codec
from pagedvid.codecs.token.codec import TokenCodec
from pagedvid.codecs.token.hadamard import HadamardCodec
from peers import Stored
from peers.catalogue import Peer

PLAIN_PAGE_BITS = 256
"""Code bits of a channel in a default page: 128 tokens of int2."""
Store = Callable[[str, int, Tensor], Stored]
"""(kind, layer, x [H, n, D]) -> what comes back from storage."""


@dataclass(frozen=True)
class Paged:
    """A pair of pagedvid's codecs, and pages that suit them."""

    name: str
    keys: str
    values: str
    rows: int
    """Rows of a page."""


@dataclass(frozen=True)
class Scheme:
    """One way to store keys and values; a row of the tables."""

    name: str
    store: Store
    keys_rotated: bool
    whole_span: bool = False
    """Whether all cached chunks are stored at once."""


def paged(codecs: str, head_dim: int) -> Paged:
    """Reads "int2", or "int4/int2" for keys and values.

    The page size follows the codec of the keys: whatever metadata it needs, a page holds as many tokens as by default.
    """
    keys, values = split_pair(codecs)
    name, rows = read_codec(keys), page_rows_for(keys)
    tokens = int(PLAIN_PAGE_BITS / name.bits)
    if name.family == "channel":
        rows = PLAIN_PAGE_BITS // 8 + name.metadata_rows
    elif name.family in ("token", "hadamard"):
        rows = -(-tokens * PageFormat(head_dim).token_bytes(keys) // head_dim)
    return Paged(codecs, keys, values, rows)


def peer_scheme(peer: Peer) -> Scheme:
    """The scheme of a published quantizer."""
    return Scheme(peer.name, lambda kind, layer, x: peer.quantize(kind)(x), peer.keys_rotated, peer.whole_span)


def paged_scheme(codecs: Paged, page: PageFormat, book: CodecBook) -> Scheme:
    """The scheme of a pair of codecs. `book`: made for this page."""

    def store(kind: str, layer: int, x_HnD: Tensor) -> Stored:
        name = codecs.keys if kind == "keys" else codecs.values
        return through_pages(page, book.codec(name, kind, layer, slice(0, len(x_HnD))), x_HnD)

    return Scheme(codecs.name, store, read_codec(codecs.keys).stores_rotated)


def through_pages(page: PageFormat, codec: Codec, x_HnD: Tensor) -> Stored:
    """Encodes and decodes x; with the step sizes of every token, if the codec has any."""
    num_rows, num_tokens, head_dim = x_HnD.shape
    records = codec.encode(x_HnD)
    out = torch.empty(num_rows, page.padded_tokens(num_tokens, codec.name), head_dim)
    values = codec.decode(records, num_tokens, out)
    square = _square_step_sizes(page, codec, records, num_tokens)
    return Stored(values, bits_per_value(page, codec.name, num_tokens), square, codec.axes)


def _square_step_sizes(page: PageFormat, codec: Codec, records: Tensor, num_tokens: int) -> Tensor | None:
    """[H, n, D]; None where levels are not uniform."""
    if isinstance(codec, TokenCodec | HadamardCodec):
        step_sizes = codec.per_token_steps(records, num_tokens)
        return step_sizes.square().repeat_interleave(page.head_dim // step_sizes.shape[-1], dim=-1)
    size, parts = page.page_tokens(codec.name), []
    for first in range(0, num_tokens, size):
        count = min(size, num_tokens - first)
        square = codec.mean_square_steps(records, count, first)
        if square is None:
            return None
        parts.append(square[:, None].expand(-1, count, -1))
    return torch.cat(parts, dim=1)


def bits_per_value(page: PageFormat, codec: str, num_tokens: int) -> float:
    """Stored bits per element of a chunk, with the padding of its last page."""
    return 8 * page.num_bytes * page.num_pages(num_tokens, codec) / (num_tokens * page.head_dim)
