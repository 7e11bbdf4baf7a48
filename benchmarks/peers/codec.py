"""A published quantizer as a codec of pagedvid, so that it runs in the very same engine.

Pages of the format "sim" hold, as fp32 numbers, what the quantizer gives back; it reports the bits that its own format
would take. The mean square step sizes are stored in the padding of the last page: 128 tokens leave some in pages of 9.

Axes: R rows, one per (chunk, KV head); n tokens; P pages; B record bytes; D head_dim.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from pagedvid.codecs.assignment import KINDS, Heads
from pagedvid.codecs.base import Codec
from pagedvid.codecs.book import CodecBook
from pagedvid.codecs.registry import read_codec
from pagedvid.codecs.spec import CodecSpec, PageFormat
from pagedvid.errors import ConfigError, NonFiniteError
from peers.catalogue import Peer

FORMAT = "sim"


class PeerCodec(Codec):
    """Stores the keys or values of one peer."""

    def __init__(self, peer: Peer, kind: str, page: PageFormat) -> None:
        self.peer = peer
        self.kind = kind
        self.page = page
        self.spec = replace(read_codec(FORMAT), stores_rotated=kind == "keys" and peer.keys_rotated)
        self.bits: list[float] = []
        """Bits per element of every chunk that was stored."""

    def encode(self, x_RnD: Tensor) -> Tensor:
        """uint8 [R, P, B]. Raises NonFiniteError for NaN or infinity, ConfigError without padding for step sizes."""
        if not bool(torch.isfinite(x_RnD).all()):
            raise NonFiniteError(f"NaN or infinity in what {self.peer.name} should store", ())
        stored = self.peer.quantize(self.kind)(x_RnD.float())
        self.bits.append(stored.bits)
        num_tokens = x_RnD.shape[1]
        padded = self.spec.padded_tokens(self.page, num_tokens)
        numbers_RnD = torch.zeros(len(x_RnD), padded, x_RnD.shape[2])
        numbers_RnD[:, :num_tokens] = stored.values_HnD
        if stored.square_step_size_HnD is not None:
            if padded == num_tokens:
                raise ConfigError(
                    f"{num_tokens} tokens fill their pages and leave no room for step sizes; change page rows"
                )
            numbers_RnD[:, -1] = stored.square_step_size_HnD.mean(1)
            self.axes = stored.axes_DD
        return numbers_RnD.flatten(1).view(torch.uint8).unflatten(1, (-1, self.page.num_bytes))

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """Reads tokens into `out`; returns the view [R, n, D] of it."""
        tokens = out[:, :num_tokens]
        tokens.copy_(self._numbers(records_RPB)[:, :num_tokens])
        return tokens

    def mean_square_step_sizes(self, records_RPB: Tensor, num_tokens: int, first_token: int = 0) -> Tensor | None:
        """Mean over the whole chunk, float32 [R, D]; None where levels are not uniform."""
        square = self._numbers(records_RPB)[:, -1]
        return square if bool(square.any()) else None

    def _numbers(self, records_RPB: Tensor) -> Tensor:
        return records_RPB.flatten(1).view(torch.float32).unflatten(1, (-1, self.page.head_dim))


class PeerBook(CodecBook):
    """The codecs of one peer, for `PagedKVCache`; the format "sim" only."""

    def __init__(self, peer: Peer, page: PageFormat, num_kv_heads: int) -> None:
        super().__init__(page, num_kv_heads)
        self._by_kind = {kind: PeerCodec(peer, kind, page) for kind in KINDS}

    def codec(self, spec: CodecSpec, kind: str, layer: int, heads: Heads) -> Codec:
        """The same for all layers and heads. Raises ConfigError for another name than "sim"."""
        if spec.name != FORMAT:
            raise ConfigError(f"codec {spec.name!r} was asked of a peer; only {FORMAT!r} is here")
        return self._by_kind[kind]

    @property
    def bits(self) -> float:
        """Bits per element: mean over everything that was stored, keys and values."""
        return sum(sum(codec.bits) / len(codec.bits) for codec in self._by_kind.values()) / len(self._by_kind)
