"""Accounting of the host memory of swapped streams."""

from __future__ import annotations

from collections.abc import Callable

from pagedvid.arguments import whole_number
from pagedvid.errors import CapacityError, ConfigError, IntegrityError
from pagedvid.units import format_bytes, parse_bytes


class HostMemory:
    """Counts bytes of host memory. The memory itself is that of the streams' images."""

    def __init__(self, num_bytes: int | str, on_every_rank: Callable[[bool], bool] = bool) -> None:
        """`num_bytes`: how many there are, at least 0, or text such as "16GiB". `on_every_rank`: see `CacheManager`;
        bytes are taken where all ranks have them. Raises ConfigError."""
        self.num_bytes = whole_number("host memory", parse_bytes(num_bytes), 0, error=ConfigError)
        self.used_bytes = 0
        self._on_every_rank = on_every_rank

    @property
    def free_bytes(self) -> int:
        """Bytes that nobody has taken."""
        return self.num_bytes - self.used_bytes

    def take(self, num_bytes: int) -> None:
        """Takes that many bytes. Raises CapacityError (nothing is taken) when fewer are free."""
        self.require(num_bytes)
        self.used_bytes += num_bytes

    def require(self, num_bytes: int) -> None:
        """Raises CapacityError when fewer bytes are free."""
        num_bytes = whole_number("num_bytes", num_bytes, 0)
        if not self._on_every_rank(num_bytes <= self.free_bytes):
            raise CapacityError(
                f"swapping a stream out needs {num_bytes} bytes ({format_bytes(num_bytes)}) of host memory; "
                f"{self.used_bytes} of {self.num_bytes} are used, {self.free_bytes} are left. Give more host memory, "
                "or resume, finish or cancel a video that is swapped out."
            )

    def give_back(self, num_bytes: int) -> None:
        """Makes bytes free again. Raises IntegrityError for more than were taken."""
        num_bytes = whole_number("num_bytes", num_bytes, 0)
        if num_bytes > self.used_bytes:
            raise IntegrityError(f"{num_bytes} bytes of host memory given back; only {self.used_bytes} were taken")
        self.used_bytes -= num_bytes
