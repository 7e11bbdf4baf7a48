"""Checkpoints of the fake engine as files, for tests that end the process."""

from __future__ import annotations

import pickle
from pathlib import Path

from pagedvid.engine.snapshot import JobSnapshot
from pagedvid.errors import ConfigError
from pagedvid.files.atomic import replacing


class DiskFiles:
    def write(self, snapshot: JobSnapshot, path: Path) -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(pickle.dumps(snapshot))

    def read(self, path: Path) -> JobSnapshot:
        try:
            return pickle.loads(path.read_bytes())
        except (OSError, pickle.UnpicklingError, EOFError) as error:
            raise ConfigError(f"{path} is no checkpoint: {error}") from error
