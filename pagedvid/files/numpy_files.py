"""Files of numpy arrays (.npz) that cannot be trusted."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from pagedvid.errors import ConfigError
from pagedvid.files.paths import readable_file
from pagedvid.shown import named
from pagedvid.units import format_bytes

Array = np.ndarray[Any, Any]


def read_arrays(file: Path, most_bytes: int) -> dict[str, Array]:
    """All arrays of a .npz file, by name; Python objects in it are refused.

    Raises ConfigError when it cannot be read, or would take more than `most_bytes` of memory.
    """
    try:
        with zipfile.ZipFile(readable_file(file)) as archive:
            num_bytes = sum(member.file_size for member in archive.infolist())
        if num_bytes > most_bytes:
            raise ConfigError(
                f"{named(file)} holds {format_bytes(num_bytes)} of arrays; at most {format_bytes(most_bytes)} are "
                "expected: give the right file"
            )
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, MemoryError, NotImplementedError, zipfile.BadZipFile, zlib.error) as error:
        raise ConfigError(f"{named(file)} cannot be read as numpy arrays ({error}); download it again") from error
