"""Published KV-cache quantizers, written from their papers, to be measured on the same tensors as pagedvid's codecs.

A quantizer is a function from numbers [H, n, D] (H heads, n tokens, D head_dim) to what comes back from storage.
catalogue.py lists them with their parameters; codec.py lets them run in pagedvid's own engine.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Stored:
    """What comes back from storage."""

    values_HnD: Tensor
    bits: float
    """Bits per element: codes, and everything else that is needed to read them."""
    square_step_size_HnD: Tensor | None = None
    """Square of the step size with which each number was rounded; None when the levels are not uniform."""
    axes_DD: Tensor | None = None
    """Its rows are the directions along which numbers were rounded; None: the channels."""
