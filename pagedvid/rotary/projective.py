"""Reading stored keys and values through one linear map per frame, as in projective camera encodings (PRoPE, GTA).

Each four consecutive channels of a head are a point, and each frame has a 4x4 matrix P, which need not be orthogonal:

    q -> P_i^T q,    k -> P_f^-1 k,    v -> P_f^-1 v,    out -> P_i out          query of frame i, key of frame f

Keys and values are stored once, unmapped, however many views read them. Since

    (P_i^T q) . (P_f^-1 k) = (R^T q) . k,     P_i P_f^-1 v = R v,     R = P_i P_f^-1

stored keys and values need no mapping: for each frame f of keys, the *query* is multiplied by R^T, attends to the
stored keys and values, and its output is multiplied by R. Only R is used, computed in float64, so a distant world
origin costs no precision. The quant error of stored keys meets the query R^T q, so the correction of
correction/formula.py holds unchanged for R^T q, frame by frame.

Channel order: pages hold keys in half layout (rotary/tables.py), so R^T q is put into half layout last. Values and
outputs keep the order of the model.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

POINT_CHANNELS = 4


@runtime_checkable
class Projection(Protocol):
    """The maps through which the keys and values of frames are read."""

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of a frame; they share one map."""
        ...

    @property
    def layout(self) -> str:
        """Which channels form a pair in the rotary embedding of the same stored keys: "half" or "interleaved"."""
        ...

    def maps(self, tag: Any) -> tuple[Tensor, Tensor]:
        """(P, P^-1), each float64 [frames, 4, 4], of the frames of a range or stored chunk with this tag
        (`QueryRange.tag`), in token order."""
        ...


def map_points(x: Tensor, matrices: Tensor) -> Tensor:
    """`x` [..., n, D] with each group of four consecutive channels, a point, multiplied by `matrices` [..., 4, 4]."""
    points = x.flatten(-2).unflatten(-1, (-1, POINT_CHANNELS))
    return (points @ matrices.mT).flatten(-2).unflatten(-1, x.shape[-2:])
