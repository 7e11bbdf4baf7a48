"""Errors of a model on their way out of the engine: with a message that can be shown, and without tensors.

A model may raise anything: an error whose message is empty, cannot be made, is a megabyte long, or is not valid
Unicode. Logging, printing or storing a failure must not fail because of it, and must have something to show.
"""

from __future__ import annotations

from pagedvid.errors import ModelError

MOST_CHARACTERS = 4000
"""Most characters of a message. PyTorch's longest, about device memory, have about a thousand."""


def presentable(error: Exception) -> Exception:
    """The error itself when its message can be shown as it is, otherwise a ModelError in its place.

    Its traceback is removed, since it would keep the local variables of all calls alive, latents and predictions among
    them; log the traceback first.
    """
    _forget_tracebacks(error)
    text = _message(error)
    return error if text and _shown(text) == text else ModelError(described(error))


def described(error: Exception) -> str:
    """Kind and message of an error, about `MOST_CHARACTERS` at most; never raises."""
    kind, text = type(error).__name__, _message(error)
    if text is None:
        return f"{kind}, whose message cannot be made"
    return f"{kind}: {_shown(text)}" if text else kind


def _message(error: Exception) -> str | None:
    """None when making the message raised an error of its own."""
    try:
        return str(error)
    except Exception:
        return None


def _shown(text: str) -> str:
    """The text with lone surrogates escaped, which no file or terminal accepts, cut to `MOST_CHARACTERS`."""
    text = text.encode(errors="backslashreplace").decode()
    if len(text) <= MOST_CHARACTERS:
        return text
    return f"{text[:MOST_CHARACTERS]}... ({len(text)} characters)"


def _forget_tracebacks(error: BaseException) -> None:
    """Removes the tracebacks of the error and of all errors that led to it."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            waiting += [one.__cause__, one.__context__]
