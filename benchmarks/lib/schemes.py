"""Published quantizers and pagedvid's codecs as schemes: one way to store the keys and values of one layer.

Bits are those of a chunk in memory: for pagedvid, whole pages with their metadata and padding. Tables that belong to
the model and serve every stream (the KLT bases) do not count.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.codecs.assignment import CodecPair
from pagedvid.codecs.base import Codec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.channel.spec import ChannelSpec
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.token.codec import TokenCodec
from pagedvid.codecs.token.spec import TokenSpec
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
    pair: CodecPair
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
    pair = CodecPair.read(codecs)
    keys, rows = pair.keys, pair.keys.page_rows
    tokens = int(PLAIN_PAGE_BITS / keys.bits)
    if isinstance(keys, ChannelSpec):
        rows = PLAIN_PAGE_BITS // 8 + keys.metadata_rows
    elif isinstance(keys, TokenSpec):
        rows = -(-tokens * keys.token_bytes(PageFormat(head_dim)) // head_dim)
    return Paged(codecs, pair, rows)


def peer_scheme(peer: Peer) -> Scheme:
    """The scheme of a published quantizer."""
    return Scheme(peer.name, lambda kind, layer, x: peer.quantize(kind)(x), peer.keys_rotated, peer.whole_span)


def paged_scheme(codecs: Paged, page: PageFormat, book: CodecBook) -> Scheme:
    """The scheme of a pair of codecs. `book`: made for this page."""

    def store(kind: str, layer: int, x_HnD: Tensor) -> Stored:
        codec = book.codec(codecs.pair.of(kind), kind, layer, tuple(range(len(x_HnD))))
        return through_pages(page, codec, x_HnD)

    return Scheme(codecs.name, store, codecs.pair.keys.stores_rotated)


def through_pages(page: PageFormat, codec: Codec, x_HnD: Tensor) -> Stored:
    """Encodes and decodes x; with the step sizes of every token, if the codec has any."""
    num_rows, num_tokens, head_dim = x_HnD.shape
    records = codec.encode(x_HnD)
    out = torch.empty(num_rows, codec.spec.padded_tokens(page, num_tokens), head_dim)
    values = codec.decode(records, num_tokens, out)
    square = _square_step_sizes(page, codec, records, num_tokens)
    return Stored(values, bits_per_value(page, codec.name, num_tokens), square, codec.axes)


def _square_step_sizes(page: PageFormat, codec: Codec, records: Tensor, num_tokens: int) -> Tensor | None:
    """[H, n, D]; None where levels are not uniform."""
    if isinstance(codec, TokenCodec):
        step_sizes = codec.token_step_sizes(records, num_tokens)
        return step_sizes.square().repeat_interleave(page.head_dim // step_sizes.shape[-1], dim=-1)
    size, parts = codec.page_tokens, []
    for first in range(0, num_tokens, size):
        count = min(size, num_tokens - first)
        square = codec.mean_square_step_sizes(records, count, first)
        if square is None:
            return None
        parts.append(square[:, None].expand(-1, count, -1))
    return torch.cat(parts, dim=1)


def bits_per_value(page: PageFormat, codec: str, num_tokens: int) -> float:
    """Stored bits per element of a chunk, with the padding of its last page."""
    return 8 * page.num_bytes * read_codec(codec).num_pages(page, num_tokens) / (num_tokens * page.head_dim)
