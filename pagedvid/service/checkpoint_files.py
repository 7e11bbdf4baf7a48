"""Checkpoint files of the engines that a worker builds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pagedvid.engine.checkpoint_file import Origin, load_checkpoint, save_checkpoint
from pagedvid.engine.snapshot import JobSnapshot


@dataclass(frozen=True)
class OriginFiles:
    """Snapshots of one origin in files."""

    origin: Origin

    def write(self, snapshot: JobSnapshot, path: Path) -> None:
        """Writes all or nothing; a file that was there is replaced. Raises ConfigError and OSError."""
        save_checkpoint(path, snapshot, self.origin)

    def read(self, path: Path) -> JobSnapshot:
        """Raises ConfigError for what is no whole checkpoint of this origin."""
        return load_checkpoint(path, self.origin)
