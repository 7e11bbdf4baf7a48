"""What the service refuses, by name; see also pagedvid.errors, which its verbs raise as well."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pagedvid.errors import PagedvidError, WorkerError


class NotFound(PagedvidError, LookupError):
    """There is no session of that id, or no chunk of that number."""


class Conflict(PagedvidError, RuntimeError):
    """A verb is not possible in the session's present state."""


class Busy(PagedvidError):
    """The service has as much to do as it accepts; the same call is possible later."""

    def __init__(self, message: str, retry_after_seconds: float, numbers: Mapping[str, int]) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        """An estimate of when a place will be free."""
        self.numbers = dict(numbers)
        """What is full and what was allowed, such as {"queued": 100, "max_queued": 100}."""


class LostWorkerError(WorkerError):
    """One of several workers has ended; its sessions go on in others in a moment, without what was asked just now."""


class StorageError(PagedvidError):
    """The data folder cannot be used: the disk is full, a file is damaged, or another process has it."""


class Closing(Busy):
    """The service is shutting down; what it has accepted goes on when it is started again."""

    def __init__(self, retry_after_seconds: float) -> None:
        super().__init__("the service is shutting down; ask again when it is back", retry_after_seconds, {})


@contextmanager
def storage_errors() -> Iterator[None]:
    """In this block, errors of files are raised as StorageErrors."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{error.filename or 'the data folder'}: {error.strerror or error}; check the disk"
        ) from error
