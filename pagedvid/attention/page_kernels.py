"""What reads and writes the pages of one codec on a GPU: kernels, or the codec's own operations on the device.

    channel, raw       kernels/decode.py, encode.py
    token, hadamard    kernels/token_decode.py, token_encode.py
    klt                kernels/klt_decode.py, klt_encode.py
    any other          codecs from outside, and head sizes that the kernels do not have: slower and just as right

Axes: H KV heads, P pages, n tokens, D head_dim.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from pagedvid.attention.rotation import Arrival
from pagedvid.codecs.base import Codec
from pagedvid.codecs.channel.kernels import step_sizes as channel_step_sizes
from pagedvid.codecs.channel.kernels.decode import decode
from pagedvid.codecs.channel.kernels.encode import encode
from pagedvid.codecs.channel.kernels.layout import PageLayout, head_dim_reasons, layout_of
from pagedvid.codecs.klt.codec import KltCodec
from pagedvid.codecs.klt.kernels import layout as klt_layout
from pagedvid.codecs.klt.kernels.decode import decode_klt
from pagedvid.codecs.klt.kernels.encode import encode_klt
from pagedvid.codecs.klt.kernels.layout import KltLayout
from pagedvid.codecs.page import PageFormat
from pagedvid.codecs.token.codec import TokenCodec
from pagedvid.codecs.token.hadamard import HadamardCodec
from pagedvid.codecs.token.kernels import step_sizes as token_step_sizes
from pagedvid.codecs.token.kernels.decode import decode_token
from pagedvid.codecs.token.kernels.encode import encode_token
from pagedvid.codecs.token.kernels.layout import TokenLayout
from pagedvid.rotary.axis_tables import Turns
from pagedvid.rotary.tables import rotate


class PageKernels(Protocol):
    """Of one codec. `records` is the pool, `pages_HP` int32 [H, P]; nothing waits for the device."""

    @property
    def axes(self) -> Tensor | None:
        """[D, D] on the device, whose rows are the directions that steps speak of; None: the channels."""
        ...

    def decode(self, records: Tensor, pages_HP: Tensor, out_nHD: Tensor, turns: Turns | None, frame_row: int) -> None:
        """Writes the pages' tokens, turned, to `out_nHD`, D contiguous; see `kernels.decode.decode`."""
        ...

    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor) -> Tensor:
        """Writes tokens to the pages. Returns flags [H, F]: nonzero in the row of a head that cannot be stored."""
        ...

    def step_square(self, records: Tensor, pages_HP: Tensor, tokens: slice) -> Tensor | None:
        """Mean of step^2 over consecutive tokens along `axes`, float32 [H, D]; None: there is no uniform grid."""
        ...


@dataclass(frozen=True)
class ChannelKernels:
    """Channel codes and raw pages."""

    layout: PageLayout
    axes: Tensor | None = None

    def decode(self, records: Tensor, pages_HP: Tensor, out_nHD: Tensor, turns: Turns | None, frame_row: int) -> None:
        """See `PageKernels`."""
        decode(records, self.layout, pages_HP, out_nHD, turns, frame_row)

    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor) -> Tensor:
        """See `PageKernels`."""
        return encode(x_nHD, records, self.layout, pages_HP)

    def encode_given(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival) -> Tensor:
        """`encode` of keys as the model gave them: pairs put in order and turned back in the same pass."""
        turn = 0 if arrival.turned_by is None else -1
        return encode(x_nHD, records, self.layout, pages_HP, arrival.turned_by, turn=turn, pairs=arrival.layout)

    def step_square(self, records: Tensor, pages_HP: Tensor, tokens: slice) -> Tensor | None:
        """See `PageKernels`."""
        if self.layout.is_raw:
            return None
        return channel_step_sizes.mean_square_steps(
            records, self.layout, pages_HP, tokens.stop - tokens.start, tokens.start
        )


@dataclass(frozen=True)
class TokenKernels:
    """Codes with steps per token."""

    layout: TokenLayout

    @property
    def axes(self) -> Tensor | None:
        """See `PageKernels`."""
        return self.layout.matrix

    def decode(self, records: Tensor, pages_HP: Tensor, out_nHD: Tensor, turns: Turns | None, frame_row: int) -> None:
        """See `PageKernels`."""
        decode_token(records, self.layout, pages_HP, out_nHD, turns, frame_row)

    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor) -> Tensor:
        """See `PageKernels`."""
        return encode_token(x_nHD, records, self.layout, pages_HP)

    def step_square(self, records: Tensor, pages_HP: Tensor, tokens: slice) -> Tensor | None:
        """See `PageKernels`."""
        return token_step_sizes.mean_square_steps(
            records, self.layout, pages_HP, tokens.stop - tokens.start, tokens.start
        )


@dataclass(frozen=True)
class KltKernels:
    """Transform codes."""

    layout: KltLayout
    axes: Tensor | None = None

    def decode(self, records: Tensor, pages_HP: Tensor, out_nHD: Tensor, turns: Turns | None, frame_row: int) -> None:
        """See `PageKernels`."""
        decode_klt(records, self.layout, pages_HP, out_nHD, turns, frame_row)

    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor) -> Tensor:
        """See `PageKernels`."""
        return encode_klt(x_nHD, records, self.layout, pages_HP)

    def step_square(self, records: Tensor, pages_HP: Tensor, tokens: slice) -> Tensor | None:
        """See `PageKernels`."""
        return None


@dataclass(frozen=True)
class CodecOperations:
    """Pages that no kernel reads or writes. `encode` looks at the device, and raises NonFiniteError itself."""

    codec: Codec
    page: PageFormat
    axes: Tensor | None

    def decode(self, records: Tensor, pages_HP: Tensor, out_nHD: Tensor, turns: Turns | None, frame_row: int) -> None:
        """See `PageKernels`."""
        num_tokens = len(out_nHD)
        padded = self.page.padded_tokens(num_tokens, self.codec.name)
        buffer = torch.empty(len(pages_HP), padded, self.page.head_dim, dtype=torch.float32, device=out_nHD.device)
        x_HnD = self.codec.decode(records[pages_HP.long()], num_tokens, buffer)
        if turns is not None:
            x_HnD = rotate(x_HnD, *turns.of_chunk(frame_row, num_tokens))
        out_nHD.copy_(x_HnD.transpose(0, 1))

    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor) -> Tensor:
        """See `PageKernels`."""
        records[pages_HP.long()] = self.codec.encode(x_nHD.transpose(0, 1).float())
        return torch.zeros(len(pages_HP), 1, dtype=torch.uint8, device=records.device)

    def step_square(self, records: Tensor, pages_HP: Tensor, tokens: slice) -> Tensor | None:
        """See `PageKernels`."""
        return self.codec.mean_square_steps(records[pages_HP.long()], tokens.stop - tokens.start, tokens.start)


class KernelBook:
    """The kernels of all codecs of a pool, each made once."""

    def __init__(self, page: PageFormat, device: torch.device) -> None:
        self._page = page
        self._device = device
        self._made: dict[int, tuple[Codec, PageKernels]] = {}

    def of(self, codec: Codec) -> PageKernels:
        """Those of one codec."""
        if id(codec) not in self._made:
            with torch.inference_mode(False):  # a host may enter inference mode for some steps and not for others
                self._made[id(codec)] = codec, self._make(codec)
        return self._made[id(codec)][1]

    def _make(self, codec: Codec) -> PageKernels:
        if isinstance(codec, (TokenCodec, HadamardCodec)) and not head_dim_reasons(self._page.head_dim):
            return TokenKernels(TokenLayout.of(codec, self._device))
        if isinstance(codec, KltCodec) and not klt_layout.unsupported_reasons(self._page):
            return KltKernels(KltLayout.of(codec, self._device))
        if (layout := layout_of(self._page, codec)) is not None:
            return ChannelKernels(layout)
        return CodecOperations(codec, self._page, None if codec.axes is None else codec.axes.to(self._device))
