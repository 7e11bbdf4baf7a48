"""Transform coding of pages: what neighbouring frames and channels have in common is stored once.

    x  --(- mean)--> analysis [D, D] over channels --> cosine transform over the F frames of a block
       --> F * D coefficients, the important ones first: 8, 4, 2, 1 bits each, the rest dropped

The channel transform is the Karhunen-Loeve basis of one (layer, KV head); for keys in a metric in which distance is the
expected change of attention scores. Bits are allocated by reverse water-filling (codecs/klt/allocation.py). Both come
from a calibration of the model (calibration/fit.py) and are the same for all streams. Besides codes, a page stores one
scale per channel direction (codecs/klt/scales.py).

A record is the page's rows of D bytes:   | codes of width 8 | 4 | 2 | 1 | unused | D scale bytes |
The codes of a width are ordered [coefficient, block].

Axes: R = E * h rows, E chunks of the h heads of the tables; n tokens; P pages; F frames of a block; b blocks of a page;
K coded coefficients of a block; D head_dim; B record bytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad
from typing_extensions import override

from pagedvid.codecs.assignment import Heads
from pagedvid.codecs.base import Codec, PageKernels, not_storable
from pagedvid.codecs.klt.blocks import BlockLayout, places_in_pages, tokens_in_pages
from pagedvid.codecs.klt.coding import KltCoding
from pagedvid.codecs.klt.levels import byte_values, nearest
from pagedvid.codecs.klt.scales import byte_scales, choose_scales, coded_scales, scales, split
from pagedvid.codecs.klt.spec import KltSpec
from pagedvid.codecs.klt.tables import KltTables
from pagedvid.codecs.packing import FP16_MAX, pack_fields
from pagedvid.codecs.spec import PageFormat
from pagedvid.errors import ShapeError

ROW_PAGES_AT_ONCE = 64
"""Pages, counted over all rows, that are encoded at once: few enough that the candidates for their scales stay in a
CPU's cache."""


@dataclass(frozen=True, eq=False)
class KltCodec(Codec):
    """Transform coding for one layer; row r belongs to head r % h of its tables."""

    page: PageFormat
    spec: KltSpec
    coding: KltCoding
    """Constants for the heads of its rows."""
    _codings: dict[torch.device, KltCoding] = field(default_factory=dict, repr=False)

    @override
    def of_heads(self, heads: Heads) -> KltCodec:
        return KltCodec(self.page, self.spec, self.coding.of_heads(heads))

    @property
    def layout(self) -> BlockLayout:
        """Which tokens form a block."""
        return BlockLayout(self.page.tokens_per_frame, self.page.frames_per_block)

    @override
    def encode(self, x_RnD: Tensor) -> Tensor:
        coding = self._coding(x_RnD)
        low, high = torch.aminmax(x_RnD)
        if not bool((low > -FP16_MAX) & (high < FP16_MAX)):
            raise not_storable(x_RnD, FP16_MAX)
        coefficients_EhPN = self._coefficients(coding, x_RnD.float())
        taken = (coding.taken_h1K1 + self.page.head_dim * coding.blocks).flatten(2)
        pages_at_once = max(1, ROW_PAGES_AT_ONCE // len(x_RnD))
        records = []
        for part_EhPN in coefficients_EhPN.split(pages_at_once, dim=2):
            coded_EhPK = part_EhPN.gather(-1, taken.expand(*part_EhPN.shape[:3], -1))
            records.append(self._pack(coding, coded_EhPK.unflatten(-1, (-1, len(coding.blocks)))))
        return torch.cat(records, dim=2).flatten(0, 1)

    @override
    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        coding = self._coding(records_RPB)
        num_blocks, head_dim = len(coding.blocks), self.page.head_dim
        rows = (len(records_RPB) // coding.num_heads, coding.num_heads, records_RPB.shape[1])
        bytes_RPB = records_RPB.int()
        coded_EhPK = self._unpack(coding, bytes_RPB).view(*rows, -1)
        rank = coding.rank_hN.view(coding.num_heads, -1, 1, head_dim)
        place = torch.add(coding.blocks[:, None], rank, alpha=num_blocks).view(1, coding.num_heads, 1, -1)
        y = coded_EhPK.gather(-1, place.expand(*coded_EhPK.shape[:3], -1))
        scale_RPD = embedding(bytes_RPB[..., -head_dim:], byte_scales(bytes_RPB.device))
        unit = scale_RPD.view(*rows, 1, 1, head_dim) * coding.deviation_h1F1D
        y = y.unflatten(-1, (-1, num_blocks, head_dim)).mul_(unit)
        y = (coding.cosines_FF.T @ y.flatten(0, 2).flatten(2)).view(len(records_RPB), -1, head_dim)
        x_RnD = torch.baddbmm(_rows(coding.mean_h1D, y), y, _rows(coding.synthesis_hDD, y))
        places = places_in_pages(self.layout, num_tokens, num_blocks, y.device)
        ordered = x_RnD[:, :num_tokens] if places is None else x_RnD.index_select(1, places)
        return out[:, :num_tokens].copy_(ordered)

    @override
    def kernels(self, device: torch.device) -> PageKernels:
        from pagedvid.codecs.klt.kernels.layout import KltLayout, unsupported_reasons
        from pagedvid.codecs.klt.kernels.pages import KltKernels

        if unsupported_reasons(self.page):
            return super().kernels(device)
        return KltKernels(KltLayout.of(self.page, self.coding, device))

    def _coefficients(self, coding: KltCoding, x_RnD: Tensor) -> Tensor:
        """Coefficients of tokens, [E, h, P, F * b * D]."""
        num_blocks = len(coding.blocks)
        y = torch.baddbmm(_rows(coding.analysed_mean_h1D, x_RnD), x_RnD, _rows(coding.analysis_hDD, x_RnD), beta=-1)
        tokens = tokens_in_pages(self.layout, x_RnD.shape[1], num_blocks, x_RnD.device)
        y = y if tokens is None else y.index_select(1, tokens)
        pages = y.view(-1, len(coding.cosines_FF), num_blocks * self.page.head_dim)
        return (coding.cosines_FF @ pages).view(len(x_RnD) // coding.num_heads, coding.num_heads, -1, pages[0].numel())

    def _pack(self, coding: KltCoding, coded_EhPKb: Tensor) -> Tensor:
        """Coded coefficients -> records uint8 [E, h, P, B]. Overwrites `coded_EhPKb`."""
        normal = coded_EhPKb.div_(coding.deviation_h1K[..., None])
        scale_bytes_EhPD = choose_scales(coding, normal)
        scaled = normal.div_(coded_scales(coding, scales(scale_bytes_EhPD))[..., None])
        packed = [
            pack_fields(nearest(part, width).flatten(-2), width)
            for width, part in zip(coding.segments, split(coding, scaled), strict=True)
        ]
        num_unused = self.page.num_bytes - self.page.head_dim - sum(part.shape[-1] for part in packed)
        return torch.cat([*packed[:-1], pad(packed[-1], (0, num_unused)), scale_bytes_EhPD.to(torch.uint8)], dim=-1)

    def _unpack(self, coding: KltCoding, bytes_RPB: Tensor) -> Tensor:
        """Coded coefficients in units of deviation times scale, and a 0 for all others, [R, P, (K + 1) * b]."""
        parts, first = [], 0
        for width, count in coding.segments.items():
            end = first + count * width * len(coding.blocks) // 8
            values = byte_values(width, bytes_RPB.device)
            parts.append(embedding(bytes_RPB[..., first:end], values).flatten(-2))
            first = end
        parts.append(parts[0].new_zeros(*bytes_RPB.shape[:-1], len(coding.blocks)))
        return torch.cat(parts, dim=-1)

    def _coding(self, rows: Tensor) -> KltCoding:
        """The constants on the device of `rows`, tokens or records [R, ...]. Raises ShapeError for unfit rows."""
        if len(rows) % self.coding.num_heads or rows.shape[-1] not in (self.page.head_dim, self.page.num_bytes):
            raise ShapeError(
                f"{len(rows)} rows of {rows.shape[-1]}; {self.name} is for {self.page.head_dim} channels or pages of "
                f"{self.page.num_bytes} bytes, and for a number of rows that is a multiple of its "
                f"{self.coding.num_heads} heads"
            )
        if rows.device not in self._codings:
            self._codings[rows.device] = self.coding.to(rows.device)
        return self._codings[rows.device]


def _rows(x_hnD: Tensor, rows: Tensor) -> Tensor:
    """A tensor by head [h, ...], repeated for each row."""
    num_chunks = len(rows) // len(x_hnD)
    return x_hnD if num_chunks == 1 else x_hnD.repeat(num_chunks, 1, 1)


def make_codec(page: PageFormat, spec: KltSpec, tables: KltTables) -> KltCodec:
    """The codec of a spec; the `CodecSpec.implementation` of `KltSpec`. Raises ConfigError for unfit tables."""
    return KltCodec(page, spec, KltCoding.of(spec, page, tables))
