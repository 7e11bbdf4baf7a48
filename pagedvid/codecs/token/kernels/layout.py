"""What kernels have to know of a page of per-token codes: see codecs/token/codec.py and codecs/token/hadamard.py.

A page of n tokens, with G channel groups in each:

    | codes, C = n * D * bits / 8 bytes | step fp16 [n, G] | zero fp16 [n, G] | unused |

The code of token t, channel c, is number k = t * D + c, and lies in field k // C of byte k % C. C is a multiple of
D * bits / 8, so a run of so many neighbouring channels lies in one field, which kernels look up once for all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.codecs.page import PageFormat
from pagedvid.codecs.token.hadamard import hadamard_matrix
from pagedvid.codecs.token.spec import TokenSpec
from pagedvid.codecs.triton_common import head_dim_reasons
from pagedvid.errors import ConfigError


@dataclass(frozen=True, eq=False)
class TokenLayout:
    """The pages of one token or hadamard codec in one pool."""

    head_dim: int
    page_bytes: int
    page_tokens: int
    bits: int
    """Of a code."""
    group: int
    """Channels that share a token's step."""
    matrix: Tensor | None
    """float32 [D, D], contiguous, on the device, by which rows are multiplied before they are stored, and again after
    (hadamard); None: they are stored as they are."""

    @staticmethod
    def of(page: PageFormat, spec: TokenSpec, device: torch.device) -> TokenLayout:
        """Raises ConfigError for a head_dim that the kernels do not have."""
        if reasons := head_dim_reasons(page.head_dim):
            raise ConfigError(f"no kernel reads pages of {spec.name}: {', '.join(reasons)}")
        return TokenLayout(
            page.head_dim,
            page.num_bytes,
            spec.page_tokens(page),
            spec.bits,
            spec.group,
            hadamard_matrix(page.head_dim).to(device) if spec.is_hadamard else None,
        )

    @property
    def num_groups(self) -> int:
        """Channel groups of a token."""
        return self.head_dim // self.group

    @property
    def typed(self) -> torch.dtype:
        """How kernels see the pool a second time: steps and zeros."""
        return torch.float16

    def view(self, records: Tensor) -> Tensor:
        """The pool's bytes [num_pages, page_bytes] in that type."""
        return records.view(self.typed)

    def constants(self) -> dict[str, int]:
        """Compile-time arguments of a kernel."""
        return {
            "HEAD_DIM": self.head_dim,
            "PAGE_BYTES": self.page_bytes,
            "PAGE_TOKENS": self.page_tokens,
            "BITS": self.bits,
            "GROUP": self.group,
        }
