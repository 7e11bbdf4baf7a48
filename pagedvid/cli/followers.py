"""The processes that rank 0 starts on its machine: the same command, once for every other rank."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from pagedvid.cli.variables import LOCAL_RANK, RANK, RENDEZVOUS, WORLD_SIZE, value_of, with_values
from pagedvid.errors import RankError

LEAVE_SECONDS = 20.0
"""How long followers have to exit after they were told to."""
LOOK_SECONDS = 0.05
_FILE = "file://"


class Followers:
    """Their processes, in a `with` block, at whose end none is left.

    They have a session of their own, so that Ctrl-C reaches rank 0 alone.
    """

    def __init__(self, command_line: Sequence[str], num_ranks: int) -> None:
        """Starts ranks 1 to `num_ranks` - 1; what they say goes to stderr."""
        self._folder = tempfile.TemporaryDirectory(prefix="pagedvid-ranks-", ignore_cleanup_errors=True)
        self.rendezvous = f"{_FILE}{self._folder.name}/store"
        """Where ranks meet, as PyTorch takes it."""
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        for rank in range(1, num_ranks):
            values = {RANK: rank, LOCAL_RANK: rank, WORLD_SIZE: num_ranks, RENDEZVOUS: self.rendezvous}
            self._processes[rank] = subprocess.Popen(
                [sys.executable, "-m", "pagedvid", *command_line],
                env=with_values({name: str(value) for name, value in values.items()}),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )

    @staticmethod
    def announce(rank: int) -> None:
        """Called by a follower that is ready to join the process group."""
        _ready_file(value_of(RENDEZVOUS) or "", rank).touch()

    def wait_until_ready(self) -> None:
        """Waits until all of them are ready to join the process group. Raises RankError when one has ended: joining
        would wait for it."""
        while not all(_ready_file(self.rendezvous, rank).exists() for rank in self._processes):
            self.require_all()
            time.sleep(LOOK_SECONDS)

    def wait_until_ended(self) -> None:
        """Until those that were told to end have ended; they have `LEAVE_SECONDS`."""
        deadline = time.monotonic() + LEAVE_SECONDS
        while any(process.poll() is None for process in self._processes.values()) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def require_all(self) -> None:
        """Raises RankError when one of them has ended."""
        for rank, process in self._processes.items():
            if (code := process.poll()) is not None:
                how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
                raise RankError(f"rank {rank} {how}, so the others cannot go on; what it said is above")

    def __enter__(self) -> Followers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()
        self._folder.cleanup()


def _ready_file(rendezvous: str, rank: int) -> Path:
    return Path(rendezvous.removeprefix(_FILE)).with_name(f"ready-{rank}")
