"""What each correction mode goes by when stored keys are read. The modes: correction/formula.py."""

from __future__ import annotations

from torch import Tensor

from pagedvid.codecs.base import Codec
from pagedvid.correction.formula import KeyNoise


def key_noise(
    mode: str,
    codec: Codec,
    records_RPB: Tensor,
    variance_change_RD: Tensor | None,
    turns: bool,
    num_tokens: int,
    first_token: int = 0,
) -> KeyNoise:
    """The noise of `num_tokens` keys from `first_token` on, row by row. `mode` is not "off".

    `variance_change_RD`: what was kept of the whole chunk at its commit. `turns`: whether keys that are stored before
    rotary embedding are turned before they meet the query.
    """
    turns = turns and not codec.stores_rotated
    if mode == "variance":
        return KeyNoise(None, variance_change_RD, turns=turns)
    steps = codec.mean_square_steps(records_RPB, num_tokens, first_token)
    return KeyNoise(steps, variance_change_RD, codec.axes, turns)
