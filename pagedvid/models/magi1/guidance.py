"""From a chunk's predictions to the velocity by which it advances.

One forward a step: the prediction itself; for a nearly clean chunk mixed with the one that saw nothing but itself.
Three forwards, one after the other: with prompt and history (c), with history only (h), with neither (u), combined as
(1 - p) u + (p - s) h + s c, where the strengths p and s depend on the chunk's time.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from pagedvid.models.magi1.spec import SamplingConfig

ALONE_SHARE = 0.3
"""Weight of the prediction that saw only the chunk itself."""
TIME_TOLERANCE = 1e-7


def velocity(predictions: Mapping[str, Tensor], time: float, sampling: SamplingConfig) -> Tensor:
    """The chunk's velocity from its predictions by role; see schedule.py for the roles."""
    conditional = predictions["cond"]
    if "alone" in predictions:
        return (1 - ALONE_SHARE) * conditional + ALONE_SHARE * predictions["alone"]
    if "uncond" not in predictions:
        return conditional
    index = sum(start - TIME_TOLERANCE < time for start in sampling.cfg_t_range) - 1
    history, text = sampling.prev_chunk_scales[index], sampling.text_scales[index]
    return (1 - history) * predictions["uncond"] + (history - text) * predictions["null"] + text * conditional
