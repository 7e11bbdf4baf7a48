"""An error as the end of a line: `failed  <what>  <reason>`."""

from __future__ import annotations

from pagedvid.errors import PagedvidError


def reason(error: Exception) -> str:
    """What happened, in one line. Of a file error only what the system says, because the line names the file already;
    of an error that nobody expected its class too."""
    if isinstance(error, OSError) and error.strerror:
        return " ".join(error.strerror.split())
    message = " ".join(str(error).split())
    if isinstance(error, PagedvidError | OSError) and message:
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
