"""Safetensors files that say what they are and prove that every byte is as it was written.

The metadata are `format`, a name with a version; `fields`, a JSON object; and `checksum`, in hex digits the BLAKE2b
hash of the whole file with zeros in place of these digits.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pagedvid.errors import ConfigError
from pagedvid.files.atomic import replacing
from pagedvid.files.paths import readable_file
from pagedvid.files.plain_json import read_json_object
from pagedvid.shown import named, shown
from pagedvid.units import MIB, format_bytes

MAX_HEADER_BYTES = 32 * MIB
"""Of names, shapes and metadata, which are held in memory as Python objects."""
_LENGTH_BYTES = 8
"""Of the number in front of the header that says how long it is."""
_KEY = b'"checksum":"'
"""What is before the checksum in the header, and nowhere else: quotation marks inside texts are escaped."""
_ZEROS = b"0" * 64


def write_checked(path: Path, format_: str, fields: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Writes a file that `read_checked` reads: all of it and forced to disk, or nothing, and then an older one stays.

    Raises ConfigError for fields that JSON cannot hold, and when the file cannot be written.
    """
    try:
        text = json.dumps(fields, allow_nan=False)
        read_json_object(text)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{named(path)} cannot be written: {error}") from error
    metadata = {"format": format_, "fields": text, "checksum": _ZEROS.decode()}
    try:
        with replacing(path) as temporary:
            save_file(_apart(tensors), temporary, metadata)
            with temporary.open("r+b") as file:
                _refuse_large_header(file, path)
                _insert_checksum(file)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{named(path)} cannot be written ({error}); what was there before is unchanged") from error


def read_checked(
    path: Path, format_: str, accept: Callable[[dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Fields and tensors of a file that was written as this format; `accept` may refuse the fields by raising.

    No tensor takes memory before the checksum is verified and the fields are accepted. Raises ConfigError for files
    that are missing, damaged, or something else.
    """
    readable_file(path, "give a file that pagedvid has written")
    try:
        with path.open("rb") as file:
            _refuse_large_header(file, path)
            with safe_open(path, framework="pt") as content:
                fields = _verified_fields(file, path, format_, content.metadata() or {})
                accept(fields)
                names = content.keys()
                return fields, {name: content.get_tensor(name).clone() for name in names}
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{named(path)} is damaged or no safetensors file ({error}); use another copy of the file"
        ) from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same in tensors as safetensors takes them: contiguous, on the CPU, each in memory of its own."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    used: set[int] = set()
    for name, tensor in plain.items():
        memory = tensor.untyped_storage().data_ptr()
        if memory in used:
            plain[name] = tensor.clone()
        used.add(memory)
    return plain


def _refuse_large_header(file: BinaryIO, path: Path) -> None:
    """Raises ConfigError for a header that would take too much memory."""
    num_bytes = _header_bytes(file)
    if num_bytes > MAX_HEADER_BYTES:
        raise ConfigError(
            f"the header of {named(path)} has {format_bytes(num_bytes)}; at most {format_bytes(MAX_HEADER_BYTES)} are "
            "read. If it is not a damaged or foreign file, its video keeps too many chunks: narrow the window"
        )


def _verified_fields(file: BinaryIO, path: Path, format_: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The fields of an intact file of this format. Raises ConfigError for any other."""
    found, checksum = metadata.get("format"), metadata.get("checksum", "").encode()
    if found != format_:
        raise ConfigError(
            f"{named(path)} has the format {shown(found)}; this version of pagedvid reads {shown(format_)} here"
        )
    if not re.fullmatch(rb"[0-9a-f]{64}", checksum) or _checksum(file, checksum) != checksum:
        raise ConfigError(f"{named(path)} is damaged: its checksum is wrong; use another copy of the file")
    try:
        return read_json_object(metadata.get("fields", ""))
    except ConfigError as error:
        raise ConfigError(f"{named(path)} cannot be read: {error}; use another copy of the file") from error


def _insert_checksum(file: BinaryIO) -> None:
    """Replaces the zeros in the header by the checksum."""
    checksum = _checksum(file, _ZEROS)
    place = _header(file).index(_KEY + _ZEROS) + len(_KEY)
    file.seek(place)
    file.write(checksum)


def _checksum(file: BinaryIO, stated: bytes) -> bytes:
    """The checksum of a file whose header says `stated` in its place."""
    digest = hashlib.blake2b(_header(file).replace(_KEY + stated, _KEY + _ZEROS, 1), digest_size=32)
    while block := file.read(MIB):
        digest.update(block)
    return digest.hexdigest().encode()


def _header(file: BinaryIO) -> bytes:
    """The beginning of a file, up to its tensors."""
    num_bytes = _LENGTH_BYTES + _header_bytes(file)
    file.seek(0)
    return file.read(num_bytes)


def _header_bytes(file: BinaryIO) -> int:
    """What the file says of the length of its header."""
    file.seek(0)
    return int.from_bytes(file.read(_LENGTH_BYTES), "little")


def take_tensor(
    tensors: dict[str, Tensor], name: str, dtypes: Sequence[torch.dtype], shape: Sequence[int | None]
) -> Tensor:
    """Removes one tensor that was read and returns it. `shape`: None where any size will do.

    Raises ConfigError when it is missing or another one.
    """
    tensor = tensors.pop(name, None)
    if tensor is None:
        raise ConfigError(f"the tensor {shown(name)} is missing")
    fits = len(tensor.shape) == len(shape) and all(b in (None, a) for a, b in zip(tensor.shape, shape, strict=True))
    if not fits or tensor.dtype not in dtypes:
        sizes = ", ".join("any" if size is None else str(size) for size in shape)
        allowed = " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        found = f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        raise ConfigError(f"the tensor {shown(name)} is {found}; it must be {allowed} [{sizes}]")
    return tensor
