"""Files that a line of a prompts file names: what its model takes by name, and the image or video that it goes on from.

Relative paths are relative to the folder of the prompts file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pagedvid.engine.requests import VideoRequest
from pagedvid.errors import ConfigError
from pagedvid.files.fingerprint import fingerprint
from pagedvid.output.given_files import DIGEST, IMAGE, MOST_START_SECONDS, START, VIDEO
from pagedvid.shown import named, short, shown

_NOT_INPUTS = (IMAGE, VIDEO, START, DIGEST)
"""What `given_frames` makes of other fields of a line."""


def input_files(place: str, inputs: object, folder: Path) -> dict[str, str]:
    """Paths by input name. Raises ConfigError, which begins with the `place`, as `given_frames` does."""
    if inputs is None:
        return {}
    if not isinstance(inputs, dict) or not all(isinstance(file, str) and file for file in inputs.values()):
        raise ConfigError(
            f'{place}: "inputs" is {shown(inputs)}; it must be an object of file names such as '
            '{"embeddings": "caption.safetensors"}'
        )
    if misplaced := next((name for name in _NOT_INPUTS if name in inputs), None):
        raise ConfigError(
            f'{place}: "inputs" has "{misplaced}", which is no input of a model; write "{IMAGE}", or "{VIDEO}" and '
            f'"{START}", outside of "inputs"'
        )
    return {name: str(_file(place, f'the input "{short(name)}"', folder / file)) for name, file in inputs.items()}


def given_frames(place: str, fields: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The inputs of a line with "image", or "video" and perhaps "start_seconds" (output/given_frames.py), among them
    the digest of the file."""
    names = [name for name in (IMAGE, VIDEO) if name in fields]
    if len(names) > 1:
        raise ConfigError(f'{place}: "{IMAGE}" and "{VIDEO}" are both given; leave one of them out')
    if START in fields and names != [VIDEO]:
        raise ConfigError(f'{place}: "{START}" is a time in a "{VIDEO}", which is missing; leave it out')
    if not names:
        return {}
    (name,), file = names, fields[names[0]]
    if not isinstance(file, str) or not file:
        raise ConfigError(f'{place}: "{name}" is {shown(file)}; it must be the name of a file')
    path = _file(place, f'"{name}"', folder / file)
    inputs: dict[str, Any] = {name: str(path), DIGEST: fingerprint([path])}
    if START in fields:
        inputs[START] = _seconds(place, fields[START])
    return inputs


def with_absolute_paths(request: VideoRequest) -> VideoRequest:
    """The request for a process that may have another working folder. The manifest has the paths as written."""
    files = {name: path for name, path in request.inputs.items() if name not in (DIGEST, START)}
    return replace(request, inputs={**request.inputs, **{name: str(Path(it).absolute()) for name, it in files.items()}})


def _seconds(place: str, value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MOST_START_SECONDS:
        raise ConfigError(f'{place}: "{START}" is {shown(value)}; it must be a number from 0 to {MOST_START_SECONDS:,}')
    return float(value)


def _file(place: str, what: str, path: Path) -> Path:
    try:
        is_there = path.is_file()
    except OSError as error:
        raise ConfigError(f"{place}: {what} is {named(path)}: {error.strerror}") from None
    if not is_there:
        raise ConfigError(f"{place}: {what} is {named(path)}: there is no such file")
    return path
