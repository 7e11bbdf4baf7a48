"""What kernels must know of a klt codec: the place of each coefficient's codes in a page, and the values of codes.

A page of b blocks of F frames holds, for each coefficient (frequency f, direction d), b codes of `width` bits one after
the other, from bit `first_bit` of the record on. Coefficients that are not coded have width 0. See codecs/klt/codec.py.

Axes: h KV heads; N = F * D coefficients, number f * D + direction; D head_dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from pagedvid.codecs.klt.coding import KltCoding
from pagedvid.codecs.klt.levels import levels
from pagedvid.codecs.packing import WIDTHS
from pagedvid.codecs.spec import PageFormat
from pagedvid.codecs.triton_common import head_dim_reasons
from pagedvid.errors import ShapeError

MAX_HEAD_DIM = 128
"""One float32 matrix of 256 x 256 is more than the shared memory of an A100 or H100."""


@dataclass(frozen=True, eq=False)
class KltLayout:
    """The pages of one klt codec of one layer; tensors are contiguous and on the device."""

    head_dim: int
    page_bytes: int
    page_blocks: int
    num_frames: int
    """Frames of a block."""
    tokens_per_frame: int
    coding: KltCoding
    first_bit_hN: Tensor
    """int32."""
    width_hN: Tensor
    """int32; 0 for coefficients that are not coded."""
    levels: Tensor
    """float32 [512]: the level of code c of width w has the index (1 << w) + c."""
    read_width_hN: Tensor
    """`width_hN`, but 1 for coefficients that are not coded, which decode to 0 by their unit."""
    unit_hN: Tensor
    """float32: the deviation of each coefficient times the cosine of its frequency in the first frame; 0 for those that
    are not coded."""
    peak_hD: Tensor
    """float32: the largest deviation of each direction."""
    synthesis_half_hDD: Tensor
    """float16: the synthesis with each row divided by its largest entry, `weight_hD`."""
    weight_hD: Tensor
    """float32."""

    @staticmethod
    def of(page: PageFormat, coding: KltCoding, device: torch.device) -> KltLayout:
        """The layout of pages whose heads are those of `coding`."""
        coding = _contiguous(coding.to(device))
        width_K = torch.cat(
            [torch.full((count,), width, dtype=torch.int64) for width, count in coding.segments.items()]
        )
        bits_K = width_K * len(coding.blocks)
        padded_width, padded_first = (
            torch.cat([x_K, torch.zeros(1, dtype=torch.int64)]).to(device)[coding.rank_hN].int().contiguous()
            for x_K in (width_K, bits_K.cumsum(0) - bits_K)
        )
        deviation_hFD = coding.deviation_h1F1D[:, 0, :, 0] * (padded_width > 0).unflatten(-1, (-1, page.head_dim))
        weight_hD1 = coding.synthesis_hDD.abs().amax(-1, keepdim=True)
        return KltLayout(
            page.head_dim,
            page.num_bytes,
            len(coding.blocks),
            page.frames_per_block,
            page.tokens_per_frame,
            coding,
            padded_first,
            padded_width,
            _level_table(device),
            padded_width.clamp(min=1),
            (deviation_hFD * coding.cosines_FF[:, :1]).flatten(1),
            deviation_hFD.amax(1),
            (coding.synthesis_hDD / weight_hD1).half(),
            weight_hD1[..., 0],
        )

    def check(self, tokens_nHD: Sequence[int], pages: Tensor) -> None:
        """Raises ShapeError for tokens of other heads than the layout's, or pages [..., H, P] that do not fit them."""
        num_tokens, *heads_and_channels = tokens_nHD
        span_tokens = self.tokens_per_frame * self.num_frames
        num_pages = -(-self.tokens_per_frame * -(-num_tokens // span_tokens) // self.page_blocks)
        wanted = [self.coding.num_heads, self.head_dim]
        if heads_and_channels != wanted or tuple(pages.shape[-2:]) != (wanted[0], num_pages):
            raise ShapeError(
                f"tokens {tuple(tokens_nHD)} for pages {tuple(pages.shape)}; {num_tokens} tokens of the layout's "
                f"(heads, head_dim) {tuple(wanted)} need pages {(wanted[0], num_pages)}"
            )


def unsupported_reasons(page: PageFormat) -> list[str]:
    """Why kernels cannot read or write klt pages of this format; empty if they can."""
    reasons = head_dim_reasons(page.head_dim)
    if page.head_dim > MAX_HEAD_DIM:
        reasons.append(f"head_dim is {page.head_dim}; transforms of more than {MAX_HEAD_DIM} channels do not fit")
    return reasons


def _contiguous(coding: KltCoding) -> KltCoding:
    """The same with contiguous tensors; matrices from an inversion or a decomposition are stored column by column."""
    tensors = {each.name: getattr(coding, each.name) for each in fields(coding) if each.name != "segments"}
    return replace(coding, **{name: tensor.contiguous() for name, tensor in tensors.items()})


def _level_table(device: torch.device) -> Tensor:
    table = torch.zeros(2 << max(WIDTHS), dtype=torch.float32, device=device)
    for width in WIDTHS:
        table[1 << width : 2 << width] = levels(width, device)
    return table
