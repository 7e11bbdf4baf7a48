"""Transform coding of pages: what neighbouring frames and channels share is stored once.

    x  --(- mean)--> analysis [D, D] over channels --> cosine transform over the F frames of a block
       --> F * D coefficients, the important ones first: 8, 4, 2, 1 bits each, the rest dropped

The channel transform is the Karhunen-Loeve basis of one (layer, KV head), for keys in a metric in which distance is the
expected change of attention scores; bits follow reverse water-filling (quant/allocation.py). Both come from a
calibration of the model (quant/calibration.py) and are the same for all streams. What is stored per page besides codes
is one scale per channel direction, log2 in 8 bits, chosen at commit among a few candidates by the error it causes. One
candidate always covers the largest coefficient, so that an outlier costs no more than it would without any clipping.

A record is the page's rows of D bytes:   | codes of width 8 | 4 | 2 | 1 | unused | D scale bytes |

Axes: R rows, one per head of the tables; n tokens; P pages; b blocks of a page; U = P * b blocks; F frames of a block;
N = F * D coefficients; K coded ones; D head_dim; B record bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.errors import ShapeError
from pagedvid.quant.codec import FP16_MAX, not_storable
from pagedvid.quant.fields import WIDTHS, pack_fields, unpack_fields
from pagedvid.quant.klt_tables import KltTables

SCALE_ONE = 128
"""Scale byte of 1.0."""
SCALE_STEPS = 4
"""Scale bytes per octave."""
CANDIDATES = (0, -3, -2, -1, 1, 2, 3, 4, 6)
"""Scale bytes tried, relative to the page's root mean square."""


@dataclass(frozen=True)
class KltCodec:
    """See the module docstring."""

    tables: KltTables

    def num_pages(self, num_tokens: int) -> int:
        """Pages of one row."""
        return -(-self.tables.layout.num_blocks(num_tokens) // self.tables.page_blocks)

    def encode(self, x_RnD: Tensor) -> Tensor:
        """Tokens -> records uint8 [R, P, B]. Raises NonFiniteError for NaN, infinity, or what is too large for fp16,
        ShapeError for rows that the tables do not describe.
        """
        tables = self.tables
        if x_RnD.shape[0] != tables.num_heads or x_RnD.shape[2] != tables.head_dim:
            raise ShapeError(
                f"{x_RnD.shape[0]} rows of {x_RnD.shape[2]} channels; these tables are for {tables.num_heads} rows of "
                f"{tables.head_dim}"
            )
        if not bool((x_RnD.abs() < FP16_MAX).all()):
            raise not_storable(x_RnD, FP16_MAX)
        normal_RPbK = self._coded_coefficients(x_RnD.float()).div_(tables.coded_deviation_hK[:, None, None])
        scale_bytes_RPD = self._choose_scales(normal_RPbK)
        codes_RPbK = self._codes(normal_RPbK / self._coded_scales(scale_bytes_RPD))
        packed = [
            pack_fields(part.flatten(-2), width) for width, part in zip(WIDTHS, self._split(codes_RPbK), strict=True)
        ]
        code_bytes = torch.cat(packed, dim=-1)
        unused = (tables.page_rows - 1) * tables.head_dim - code_bytes.shape[-1]
        return torch.cat([torch.nn.functional.pad(code_bytes, (0, unused)), scale_bytes_RPD], dim=-1)

    def decode(self, records_RPB: Tensor, num_tokens: int, out: Tensor) -> Tensor:
        """Records -> tokens, in their order, written into `out` [R, >= n, D]; returns its view [R, num_tokens, D]."""
        tables = self.tables
        normal_RPbK = self._values(self._read_codes(records_RPB))
        coded_RPbK = normal_RPbK * self._coded_scales(records_RPB[..., -tables.head_dim :])
        coded_RPbK *= tables.coded_deviation_hK[:, None, None]
        order_RN = tables.order_hN[:, None, None, : tables.num_coded]
        all_RPbN = torch.zeros(*coded_RPbK.shape[:-1], tables.order_hN.shape[-1], device=coded_RPbK.device)
        all_RPbN.scatter_(-1, order_RN.expand(coded_RPbK.shape), coded_RPbK)
        y_RUFD = all_RPbN.flatten(1, 2).unflatten(-1, (tables.layout.num_frames, -1))
        y_RnD = (tables.cosines_FF.T @ y_RUFD).flatten(1, 2)
        tokens_RnD = y_RnD @ tables.synthesis_hDD + tables.mean_hD[:, None]
        places = tables.layout.places(num_tokens).to(records_RPB.device)
        out[:, :num_tokens] = tokens_RnD.index_select(1, places)
        return out[:, :num_tokens]

    def variance_change(self, records_RPB: Tensor, num_tokens: int) -> Tensor:
        """Expected Var k' - Var k by channel, float32 [R, D], negative: see `KltTables.variance_loss_hD`.

        It grows with the square of a page's scales. Covariances between channels are left out.
        """
        tables = self.tables
        scale_square_RD = _scales(records_RPB[..., -tables.head_dim :]).square().mean(1)
        lost_RD = tables.variance_loss_hD * scale_square_RD
        return -torch.einsum("rj,rjd->rd", lost_RD, tables.synthesis_hDD.square())

    def _coded_coefficients(self, x_RnD: Tensor) -> Tensor:
        """[R, P, b, K], the important ones first; the last page repeats its last block."""
        tables, num_tokens = self.tables, x_RnD.shape[1]
        tokens = tables.layout.tokens(num_tokens)
        block = torch.arange(self.num_pages(num_tokens) * tables.page_blocks).clamp(max=len(tokens) - 1)
        y_RnD = (x_RnD - tables.mean_hD[:, None]) @ tables.analysis_hDD
        y_RUFD = tables.cosines_FF @ y_RnD[:, tokens[block].to(y_RnD.device)]
        order_RK = tables.order_hN[:, None, : tables.num_coded]
        coded_RUK = y_RUFD.flatten(-2).gather(-1, order_RK.expand(-1, y_RUFD.shape[1], -1))
        return coded_RUK.unflatten(1, (-1, tables.page_blocks))

    def _choose_scales(self, normal_RPbK: Tensor) -> Tensor:
        """Scale bytes [R, P, D]: for each direction the candidate that causes the least squared error on the page."""
        weight_R1K = self.tables.coded_deviation_hK.square()[:, None]
        energy_RPD = self._per_direction(weight_R1K * normal_RPbK.square().sum(2))
        weight_RPD = self._per_direction((weight_R1K * normal_RPbK.shape[2]).expand(-1, normal_RPbK.shape[1], -1))
        middle = _scale_bytes(energy_RPD / weight_RPD.clamp(min=torch.finfo(torch.float32).tiny)).round()
        peak_RPK = (normal_RPbK.abs() / self.tables.reach_K).amax(2)
        peak_RPD = torch.zeros_like(energy_RPD).scatter_reduce_(-1, self._directions(energy_RPD), peak_RPK, "amax")
        covering = _scale_bytes(peak_RPD.square()).ceil()
        candidates = torch.stack([middle + offset for offset in CANDIDATES] + [covering]).clamp_(0, 255).to(torch.uint8)
        errors = []
        for scale_bytes_RPD in candidates:
            scales = self._coded_scales(scale_bytes_RPD)
            missed = self._values(self._codes(normal_RPbK / scales)).mul_(scales).sub_(normal_RPbK)
            errors.append(self._per_direction(weight_R1K * missed.square_().sum(2)))
        return candidates.gather(0, torch.stack(errors).argmin(0, keepdim=True))[0]

    def _codes(self, scaled_RPbK: Tensor) -> Tensor:
        """Nearest levels, uint8 [R, P, b, K]."""
        levels = [self.tables.levels[width] for width in WIDTHS]
        edges = [(each[1:] + each[:-1]) / 2 for each in levels]
        parts = zip(edges, self._split(scaled_RPbK), strict=True)
        return torch.cat([torch.bucketize(part.contiguous(), edge) for edge, part in parts], dim=-1).to(torch.uint8)

    def _values(self, codes_RPbK: Tensor) -> Tensor:
        parts = zip(WIDTHS, self._split(codes_RPbK), strict=True)
        return torch.cat([self.tables.levels[width][part.int()] for width, part in parts], dim=-1)

    def _read_codes(self, records_RPB: Tensor) -> Tensor:
        first, parts = 0, []
        for width in WIDTHS:
            num_bytes = self.tables.segments[width] * self.tables.page_blocks * width // 8
            codes = unpack_fields(records_RPB[..., first : first + num_bytes], width)
            parts.append(codes.unflatten(-1, (self.tables.page_blocks, self.tables.segments[width])))
            first += num_bytes
        return torch.cat(parts, dim=-1)

    def _split(self, x_RPbK: Tensor) -> tuple[Tensor, ...]:
        """Parts of the last axis by width."""
        return x_RPbK.split([self.tables.segments[width] for width in WIDTHS], dim=-1)

    def _coded_scales(self, scale_bytes_RPD: Tensor) -> Tensor:
        """Scale of every coded coefficient, [R, P, 1, K]."""
        return _scales(scale_bytes_RPD).gather(-1, self._directions(scale_bytes_RPD)).unsqueeze(2)

    def _directions(self, x_RPD: Tensor) -> Tensor:
        """Direction of every coded coefficient, int64 [R, P, K]."""
        return self.tables.coded_direction_hK[:, None].expand(-1, x_RPD.shape[1], -1)

    def _per_direction(self, x_RPK: Tensor) -> Tensor:
        """Sums over the coded coefficients of each direction, [R, P, D]."""
        total = torch.zeros(*x_RPK.shape[:2], self.tables.head_dim, device=x_RPK.device)
        return total.scatter_add_(-1, self._directions(x_RPK), x_RPK)


def _scale_bytes(scale_square: Tensor) -> Tensor:
    """Scale bytes before rounding; 0 stands for everything below its own scale."""
    octaves = scale_square.clamp(min=2.0**-64).log2() / 2
    return octaves * SCALE_STEPS + SCALE_ONE


def _scales(scale_bytes: Tensor) -> Tensor:
    return torch.exp2((scale_bytes.float() - SCALE_ONE) / SCALE_STEPS)
