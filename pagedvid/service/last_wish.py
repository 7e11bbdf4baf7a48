"""The checkpoints that a worker writes before it ends."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from pagedvid.engine.failures import described
from pagedvid.engine.states import FINISHED
from pagedvid.service.supervised_engine import SupervisedEngine
from pagedvid.service.verbs import Verbs

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LastWish:
    """What a worker still has to do when it is stopped."""

    folder: Path | None
    """For the checkpoints; None: none are written."""
    deadline: float
    """By `time.monotonic`; no checkpoint is begun later."""


def write_all(supervised: SupervisedEngine, verbs: Verbs, wish: LastWish) -> dict[str, Path]:
    """Writes the unfinished videos, then the finished ones that are kept; returns the files by id.

    A file that cannot be written costs that video its checkpoint, and no other.
    """
    written: dict[str, Path] = {}
    if wish.folder is None:
        return written
    for status in sorted(supervised.book.statuses, key=lambda status: status.state == FINISHED):
        if time.monotonic() >= wish.deadline:
            logger.warning("video %s has no checkpoint: the time to stop is over", status.id)
            continue
        path = wish.folder / f"{quote(status.id, safe='')}.safetensors"
        try:
            verbs.checkpoint(status.id, path)
        except Exception as error:
            logger.warning("video %s has no checkpoint: %s", status.id, described(error))
        else:
            written[status.id] = path
    return written
