"""Kernels of the codec in family.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pagedvid.codecs.base import PageKernels
from pagedvid.codecs.spec import PageFormat
from pagedvid.rotary.angles import Angles
from pagedvid.rotary.tables import Arrival, rotate

LAUNCHES: list[str] = []
"""Names of kernels, one for each launch."""


@triton.jit
def half_kernel(x, typed, pages, num_tokens, PAGE_TOKENS: tl.constexpr, PAGE_VALUES: tl.constexpr, D: tl.constexpr,
                WRITE: tl.constexpr):  # fmt: skip
    """One place of a page of one head: grid (places, heads); x is [heads, tokens, D], contiguous."""
    token, head = tl.program_id(0), tl.program_id(1)
    channel = tl.arange(0, D)
    page = tl.load(pages + head * tl.cdiv(num_tokens, PAGE_TOKENS) + token // PAGE_TOKENS).to(tl.int64)
    is_token = token < num_tokens
    stored = typed + page * PAGE_VALUES + token % PAGE_TOKENS * D + channel
    given = x + (head * num_tokens + token) * D + channel
    if WRITE:
        tl.store(stored, tl.load(given, mask=is_token, other=0.0).to(tl.float16))
    else:
        tl.store(given, tl.load(stored).to(tl.float32), mask=is_token)


class HalfKernels(PageKernels):
    def __init__(self, page: PageFormat, page_tokens: int) -> None:
        self._page = page
        self._page_tokens = page_tokens

    def decode(
        self,
        records: Tensor,
        pages_SHP: Tensor,
        num_tokens: int,
        out_EJnHD: Tensor,
        angles: Angles | None = None,
        inverse_scales_SH: Tensor | None = None,
        out_heads_H: Tensor | None = None,
    ) -> None:
        num_chunks, num_heads, _ = pages_SHP.shape
        shape = (num_chunks * num_heads, num_tokens, out_EJnHD.shape[-1])
        x_RnD = torch.empty(shape, dtype=torch.float32, device=records.device)
        self._launch(x_RnD, records, pages_SHP.flatten(0, 1), write=False)
        x_SHnD = x_RnD.unflatten(0, (num_chunks, num_heads))
        if angles is not None:
            x_SHnD = rotate(x_SHnD, *(table.float().unsqueeze(1) for table in angles.by_chunk()))
        heads = slice(None) if out_heads_H is None else out_heads_H
        out_EJnHD[..., heads, :] = x_SHnD.transpose(1, 2).unflatten(0, out_EJnHD.shape[:2]).to(out_EJnHD.dtype)

    def encode(self, x_nHD: Tensor, records: Tensor, pages_HP: Tensor, arrival: Arrival | None = None) -> Tensor:
        self._launch(x_nHD.transpose(0, 1).float().contiguous(), records, pages_HP, write=True)
        return torch.zeros(len(pages_HP), 1, dtype=torch.uint8, device=records.device)

    def _launch(self, x_HnD: Tensor, records: Tensor, pages_HP: Tensor, *, write: bool) -> None:
        num_heads, num_tokens, head_dim = x_HnD.shape
        LAUNCHES.append("write" if write else "read")
        half_kernel[(pages_HP.shape[1] * self._page_tokens, num_heads)](
            x_HnD, records.view(torch.float16), pages_HP.contiguous(), num_tokens, PAGE_TOKENS=self._page_tokens,
            PAGE_VALUES=self._page.num_bytes // 2, D=head_dim, WRITE=write,
        )  # fmt: skip
