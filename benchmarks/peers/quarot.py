"""QuaRot (arXiv 2404.00456) as KV-cache quantizer: a Hadamard rotation over the head dimension, then `rtn`."""

from __future__ import annotations

from torch import Tensor

from pagedvid.codecs.token.hadamard import hadamard_matrix
from peers.rtn import rtn
from peers.stored import Stored


def quarot(x_HnD: Tensor, bits: int, group: int) -> Stored:
    """Rotated, rounded, rotated back; steps are those of the rotated channels."""
    matrix = hadamard_matrix(x_HnD.shape[-1])
    stored = rtn(x_HnD @ matrix, bits, group)
    return Stored(stored.values_HnD @ matrix, stored.bits, stored.step_square_HnD, axes_DD=matrix)
