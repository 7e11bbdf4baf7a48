"""What an interrupted calibration had measured, in a file next to its result: the next run goes on from there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.shown import named


class PartialFile:
    """Tensors, and how many videos they are from."""

    def __init__(self, path: Path, run: str) -> None:
        """`run`: text that describes the run; what another run has left is overwritten."""
        self.path = path
        self._run = hashlib.blake2b(run.encode(), digest_size=16).hexdigest()

    def load(self) -> tuple[dict[str, Tensor], int]:
        """The tensors and the number of videos; ({}, 0) if this run has left nothing that can be read."""
        try:
            with safe_open(self.path, framework="pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("run") != self._run:
                    return {}, 0
                return {name: file.get_tensor(name) for name in file.keys()}, int(metadata["videos"])  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, ValueError):  # none, torn, or not of this kind: measured again
            return {}, 0

    def save(self, tensors: Mapping[str, Tensor], num_videos: int) -> None:
        """Replaces what the file holds, at once. Raises ConfigError if it cannot be written."""
        temporary = self.path.with_name(f"{self.path.name}.tmp")
        whole = {name: x.cpu().contiguous() for name, x in tensors.items()}
        try:
            temporary.write_bytes(save(whole, {"run": self._run, "videos": str(num_videos)}))
            os.replace(temporary, self.path)
        except OSError as error:
            raise ConfigError(f"{named(self.path)} cannot be written: {error}") from error
        finally:
            with suppress(OSError):  # it has been renamed, or was never written
                temporary.unlink()

    def remove(self) -> None:
        """Deletes the file, if there is one."""
        with suppress(OSError):  # a leftover does no harm
            self.path.unlink()
