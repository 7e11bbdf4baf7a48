"""What files hold, as a short text that costs little however large they are.

A small file is read whole. Of a large one the beginning is read, which has the names and shapes of the tensors of a
.safetensors file, and NUM_BLOCKS blocks at even distances up to its end. So a fingerprint differs between files of
different sizes, between checkpoints of different training, precision or shape, and for any change without a gap of
1/NUM_BLOCKS of the file. It does not show a change between two blocks, such as one small tensor of a huge
file, and it is no protection against somebody who knows where the blocks are. Names and places of files do not count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from pagedvid.errors import ConfigError
from pagedvid.shown import named
from pagedvid.units import KIB, MIB

SMALL_BYTES = 16 * MIB
"""Most bytes of a file that is read whole."""
BEGINNING_BYTES = MIB
NUM_BLOCKS, BLOCK_BYTES = 256, 64 * KIB


def fingerprint(files: Sequence[Path]) -> str:
    """32 hex digits for the contents of these files in this order. Raises ConfigError for a file that cannot be read.

    A file is read once per process, as long as neither its size nor its time of change differs.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in files:
        try:
            facts = file.stat()
            digest.update(_digest_of(file, facts.st_size, facts.st_mtime_ns, facts.st_ino))
        except OSError as error:
            raise ConfigError(f"{named(file)} cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


@lru_cache(maxsize=1024)
def _digest_of(file: Path, num_bytes: int, *_version: int) -> bytes:
    digest = hashlib.blake2b(num_bytes.to_bytes(8, "little"), digest_size=16)
    with file.open("rb") as content:
        for first, size in _parts(num_bytes):
            content.seek(first)
            digest.update(content.read(size))
    return digest.digest()


def _parts(num_bytes: int) -> list[tuple[int, int]]:
    """(first byte, number of bytes) of what is read of a file."""
    if num_bytes <= SMALL_BYTES:
        return [(0, num_bytes)]
    last = num_bytes - BLOCK_BYTES
    return [(0, BEGINNING_BYTES), *((last * place // (NUM_BLOCKS - 1), BLOCK_BYTES) for place in range(NUM_BLOCKS))]
