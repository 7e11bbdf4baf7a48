"""Errors by name. Every message says what was given, what is allowed and what to change."""

from __future__ import annotations

from collections.abc import Sequence

MAX_NAMED = 8
"""Names that a message lists; the others are counted."""


class PagedvidError(Exception):
    """Base of every error that pagedvid raises on purpose."""


class ConfigError(PagedvidError, ValueError):
    """A setting, flag or file is wrong; nothing was started."""


class GivenFramesError(ConfigError):
    """The picture, video or frames that a video was to go on from cannot be used."""


class StartTimeError(GivenFramesError):
    """The given video cannot be gone on from at the time that was named."""


class PromptError(PagedvidError, ValueError):
    """No condition can be made of a prompt; other prompts are not affected."""


class ShapeError(PagedvidError, ValueError):
    """A tensor's shape, dtype or device does not match the cache."""


class CapacityError(PagedvidError):
    """The pool cannot reserve the pages that were asked for; nothing was reserved."""


class OverloadError(CapacityError):
    """One more live video would make others stall; nothing was changed. It may be admitted later."""


class StateError(PagedvidError, RuntimeError):
    """A call is not possible in the state of the stream or step (released stream, nested step, invisible chunk)."""


class NonFiniteError(PagedvidError, ValueError):
    """Keys or values that no page can store (NaN, infinity, beyond fp16); the commit was rolled back.

    `rows` lists the offending rows of the tensor that was encoded, so that the caller can name the KV heads.
    """

    def __init__(self, message: str, rows: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.rows = rows


class IntegrityError(PagedvidError, AssertionError):
    """The bookkeeping contradicts itself: a bug in pagedvid, or bytes that something else overwrote."""


class ModelError(PagedvidError, RuntimeError):
    """A model raised an error of its own while it worked on a video; other videos are not affected."""


class WorkerError(PagedvidError, RuntimeError):
    """A worker does nothing more: it was stopped, or its engine broke and could not be built again."""


class RankError(WorkerError):
    """One of the processes that share a model's heads failed or did something else than the others; all must end."""


class BackendError(PagedvidError, RuntimeError):
    """No attention backend can run here; the message lists each backend's reasons."""


def listed(names: Sequence[str]) -> str:
    """The first `MAX_NAMED` names, and how many more there are."""
    if not names:
        return "none"
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
