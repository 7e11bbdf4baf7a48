"""Learned rows in front of a caption's own: how long the video goes on, and what it is to be like.

The published program reads them from `special_tokens.npz` (example/assets of its repository); here that file is next to
the weights. It puts them in front one after the other, so the last one comes first:

    caption of a chunk      | duration | 2d_anime | 3d_model | hq | borderness | ... | rows of the prompt

as many of them as are named, and all together no longer than a caption may be. The one of duration says how many chunks
follow, 7 or more being one: captions differ from chunk to chunk. The null text may have some of its own.

Axes: s special rows, C caption channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.files.numpy_files import Array, read_arrays
from pagedvid.shown import named, shown
from pagedvid.units import MIB

DURATION = "duration"
OTHERS = {
    "2d_anime": 16,
    "3d_model": 15,
    "hq": 1,
    "borderness": 4,
    "dynamic_first_frames": 3,
    "static_first_frames": 2,
}
"""Row of the file's `other_tokens` by name, in the order in which they come in front of a caption."""
NAMES = (DURATION, *OTHERS)
SHIPPED = (DURATION, "hq")
"""Those that the published scripts turn on (PAD_DURATION, PAD_HQ)."""
FIRST_DURATION, NUM_DURATIONS = 7, 8
TRANSITION = 0
"""Row of `other_tokens` of a change of scene."""
MAX_BYTES = 64 * MIB
"""Of the file; the published one has 3 MB."""


@dataclass(frozen=True, eq=False)
class SpecialTokens:
    """The rows that a model puts in front."""

    captions: tuple[Tensor, ...]
    """[s, C] float32 in front of the caption of a chunk, by the number of chunks that follow it; the last one holds for
    all larger numbers."""
    null: Tensor
    """The same for the null text."""


def check_names(written: Sequence[str]) -> None:
    """Raises ConfigError for a name that no special token has."""
    unknown = [name for name in written if name not in NAMES]
    if unknown:
        raise ConfigError(f"model.special_tokens has {shown(unknown[0])}; allowed are {', '.join(NAMES)}")


def read_special_tokens(file: Path, names: Sequence[str], for_null: bool, channels: int) -> SpecialTokens:
    """The tokens of these names from a file. `for_null`: whether the null text has those of a negative prompt
    (NEG_PROMPT): captions, logos, changes of scene, borders.

    Raises ConfigError for a file that does not hold them.
    """
    arrays = read_arrays(file, MAX_BYTES)
    caption, logo = (_rows(file, arrays.get(name), name, 1, channels) for name in ("caption_token", "logo_token"))
    others = _rows(file, arrays.get("other_tokens"), "other_tokens", max(OTHERS.values()) + 1, channels)
    fixed = torch.cat([others[:0], *(others[row : row + 1] for name, row in OTHERS.items() if name in names)])
    durations = others[FIRST_DURATION : FIRST_DURATION + NUM_DURATIONS].split(1)
    borders, transition = (others[row : row + 1] for row in (OTHERS["borderness"], TRANSITION))
    return SpecialTokens(
        tuple(torch.cat([duration, fixed]) for duration in durations) if DURATION in names else (fixed,),
        torch.cat([borders, transition, logo, caption]) if for_null else others[:0],
    )


def _rows(file: Path, array: Array | None, name: str, num_rows: int, channels: int) -> Tensor:
    """An array of the file, rounded to half precision as in the published program, float32 [rows, C]."""
    if array is None or array.dtype.kind != "f" or array.shape[1:] != (channels,) or len(array) < num_rows:
        found = "missing" if array is None else f"{array.dtype} {list(array.shape)}"
        raise ConfigError(
            f"{named(file)}: {name} is {found}; expected are floating-point numbers, [{num_rows} or more, {channels}]. "
            "Give the special_tokens.npz of MAGI-1"
        )
    with np.errstate(over="ignore"):
        rows = torch.from_numpy(array.astype(np.float16)).float()
    if not bool(torch.isfinite(rows).all()):
        raise ConfigError(f"{named(file)}: {name} holds NaN, infinity, or numbers beyond float16; download it again")
    return rows
