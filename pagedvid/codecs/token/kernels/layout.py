"""What kernels must know of a page of per-token codes; see codecs/token/codec.py and codecs/token/hadamard.py.

A page of n tokens with G channel groups each:

    | codes, C = n * D * bits / 8 bytes | step sizes fp16 [n, G] | zero points fp16 [n, G] | unused |

The code of token t and channel c has the number k = t * D + c, and is in field k // C of byte k % C. C is a multiple of
D * bits / 8, so a run of that many neighbouring channels is in one field, which kernels compute once for the whole run.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pagedvid.codecs.spec import PageFormat
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
    """Channels that share a token's step size."""
    matrix: Tensor | None
    """The Hadamard matrix, float32 [D, D], contiguous, on the device, by which tokens are multiplied before they are
    stored and after they are read; None if they are stored as they are."""

    @staticmethod
    def of(page: PageFormat, spec: TokenSpec, device: torch.device) -> TokenLayout:
        """The layout for a spec. Raises ConfigError for a head_dim that kernels cannot handle."""
        if reasons := head_dim_reasons(page.head_dim):
            raise ConfigError(
                f"no kernel reads pages of {spec.name}: {', '.join(reasons)}; choose another codec or backend"
            )
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
        """The dtype in which kernels read step sizes and zero points."""
        return torch.float16

    def view(self, records: Tensor) -> Tensor:
        """The pool's bytes [num_pages, page_bytes], viewed in that dtype."""
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
