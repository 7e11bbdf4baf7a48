"""Reading stored keys and values through one linear map per frame, as projective camera encodings do (PRoPE, GTA).

Every group of four consecutive channels of a head is a point, and every frame has a 4x4 matrix P (not orthogonal):

    q -> P_i^T q,    k -> P_f^-1 k,    v -> P_f^-1 v,    out -> P_i out          query of frame i, key of frame f

Keys and values are stored as they are, once, whatever they are read through. Since

    (P_i^T q) . (P_f^-1 k) = (R^T q) . k,     P_i P_f^-1 v = R v,     R = P_i P_f^-1

nothing stored has to be mapped: per frame f of keys, the *query* is pulled back by R^T, attends to the keys and values
as they are stored, and its output is mapped by R. Only R appears, computed in float64, so a far-away world origin
costs no precision. The pulled-back query R^T q is also exactly what the rounding noise of the stored keys meets: the
correction of correction/formula.py holds with it as it stands, frame by frame.

Channel order: pages hold keys in half layout (rotary/tables.py), which a pulled-back query is brought into last.
Values and outputs stay in the order of the model.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor

POINT_CHANNELS = 4


@runtime_checkable
class Projection(Protocol):
    """How the keys and values of frames are mapped when they are read."""

    @property
    def tokens_per_frame(self) -> int:
        """Tokens that share one map."""
        ...

    @property
    def layout(self) -> str:
        """Channel pairs of the rotary embedding that reads the same stored keys: "half" or "interleaved"."""
        ...

    def maps(self, tag: Any) -> tuple[Tensor, Tensor]:
        """(P, P^-1), float64 [frames, 4, 4] each, of the frames that a range or a stored chunk with this tag
        (`QueryRange.tag`) consists of, in the order of its tokens."""
        ...


def map_points(x: Tensor, matrices: Tensor) -> Tensor:
    """Every four consecutive channels of `x` [..., n, D] as a point, mapped by its matrix of `matrices` [..., 4, 4]."""
    points = x.flatten(-2).unflatten(-1, (-1, POINT_CHANNELS))
    return (points @ matrices.mT).flatten(-2).unflatten(-1, x.shape[-2:])
