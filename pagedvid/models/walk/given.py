"""Given frames that a walk goes on from. The moves between them are not given, so they are found by matching: what two
successive frames both show has moved in the view.

    before  | a b c d |        "right": what is left of the view is gone, and e is new
    after     | b c d e |

The first given frame is at (0, 0) of the world, and the walk's first action leads on from the last one.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from pagedvid.engine.protocol import PrefixFormat
from pagedvid.errors import GivenFramesError
from pagedvid.models.common.prefix import read_prefix
from pagedvid.models.walk.actions import MOVES, GivenFrames
from pagedvid.models.walk.landmarks import CELL_SIZE
from pagedvid.models.walk.spec import frame_latents

MAX_DIFFERENCE = 16.0
"""Mean difference of what two frames have in common, in levels of 255: more is no move by one cell. A coded video
differs by 2 or so."""
TIE = 0.25
"""Differences that are no further apart say nothing: over water every move looks alike."""
_found = WeakTensorKeyDictionary()
"""The actions between given frames, as long as these exist: a walk that is steered is planned anew for every prompt."""


def read_given(inputs: Mapping[str, Any], format: PrefixFormat) -> GivenFrames | None:
    """The given frames of a request; None: there are none. Raises ConfigError for what is no such input, and for frames
    that are no walk."""
    prefix = read_prefix(inputs, format, frame_latents, "walk")
    if prefix is None:
        return None
    frames = prefix.frames_NHWC
    if frames not in _found:
        _found[frames] = actions_between(frames)
    return GivenFrames(prefix, _found[frames])


def actions_between(frames_NHWC: Tensor) -> tuple[str, ...]:
    """The action that leads from each of the frames, uint8 [N, 64, 64, 3], to the next: that of the best match, and
    where this cannot be told the one before, at first "stay". Raises GivenFramesError where none matches."""
    frames = frames_NHWC.numpy().astype(np.int16)
    actions: list[str] = []
    for number, (before, after) in enumerate(pairwise(frames)):
        differences = {action: _difference(before, after, *move) for action, move in MOVES.items()}
        best = min(differences, key=differences.__getitem__)
        if differences[best] > MAX_DIFFERENCE:
            raise GivenFramesError(
                f"the frames to go on from are no walk: frame {number + 1} does not show what frame {number} shows, "
                f"moved by one cell of {CELL_SIZE} x {CELL_SIZE} pixels at most; give frames of a walk, all of them in "
                "a row, or an image"
            )
        before_it = actions[-1] if actions else "stay"
        actions.append(before_it if differences[before_it] <= differences[best] + TIE else best)
    return tuple(actions)


def _difference(before_HWC: np.ndarray, after_HWC: np.ndarray, down: int, right: int) -> float:
    """Mean difference of what both views show, if the second one is so many cells further."""
    (rows_before, rows_after), (columns_before, columns_after) = _common(down), _common(right)
    return float(np.abs(before_HWC[rows_before, columns_before] - after_HWC[rows_after, columns_after]).mean())


def _common(move: int) -> tuple[slice, slice]:
    """Along one axis, pixels of the view before and after a move by -1, 0 or 1 cells."""
    far, near = slice(CELL_SIZE, None), slice(None, -CELL_SIZE)
    return {0: (slice(None), slice(None)), 1: (far, near), -1: (near, far)}[move]
