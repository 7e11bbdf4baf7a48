"""Reads prompts.txt (a prompt per line) or prompts.jsonl into requests; whatever is unclear is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pagedvid.cli.input_files import given_frames, input_files
from pagedvid.config.sections import MAX_FRAMES, MAX_SEED, GenerateConfig
from pagedvid.engine.requests import LaterPrompt, VideoRequest
from pagedvid.engine.timed_prompts import TimedPrompt, later_prompts, read_timed_prompts
from pagedvid.errors import ConfigError
from pagedvid.files.plain_json import check_texts, read_json_object
from pagedvid.files.text import check_text, read_text
from pagedvid.output.given_files import IMAGE, START, VIDEO, goes_on
from pagedvid.shown import named, shown, unknown

if TYPE_CHECKING:
    from pagedvid.engine.protocol import FrameFormat

FIELDS = ("prompt", "prompts", "id", "seed", "num_frames", "inputs", IMAGE, VIDEO, START)
MAX_ID_BYTES = 120
MAX_FILE_BYTES = 2**26
MAX_PROMPT_CHARS = 10_000
"""More than any text encoder reads."""
_SLUG_LENGTH = 56
_ID = re.compile(r"[^\W_][\w.-]*")


@dataclass(frozen=True)
class _Entry:
    """What one line of the file says; None: nothing about this field."""

    place: str
    """File and line, for messages."""
    prompt: str
    id: str | None = None
    seed: int | None = None
    num_frames: int | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    later: tuple[TimedPrompt, ...] = ()


def read_prompts(path: Path, generate: GenerateConfig, frames: FrameFormat | None = None) -> list[VideoRequest]:
    """The requests of a prompts file, in order. `frames`: of the model, if it makes frames, for the times of prompts.

    Raises `ConfigError`, which names the line that is wrong.
    """
    readers = {".txt": _read_lines, ".jsonl": _read_json_lines}
    if path.suffix not in readers:
        raise ConfigError(f"--prompts {named(path)}: the name must end in .txt (a prompt per line) or .jsonl")
    entries = list(readers[path.suffix](path))
    if not entries:
        raise ConfigError(f"{path} has no prompt: write at least one line that is neither empty nor a # comment")
    width = max(3, len(str(len(entries) - 1)))
    requests = [
        VideoRequest(
            id=_default_id(index, width, entry.prompt) if entry.id is None else entry.id,
            prompt=entry.prompt,
            num_frames=generate.num_frames if entry.num_frames is None else entry.num_frames,
            seed=(generate.seed + index) % (MAX_SEED + 1) if entry.seed is None else entry.seed,
            inputs=entry.inputs,
            later_prompts=_later_prompts(entry, generate, frames),
        )
        for index, entry in enumerate(entries)
    ]
    _refuse_duplicates(requests, entries)
    return requests


def _later_prompts(entry: _Entry, generate: GenerateConfig, frames: FrameFormat | None) -> tuple[LaterPrompt, ...]:
    if not entry.later:
        return ()
    num_frames = generate.num_frames if entry.num_frames is None else entry.num_frames
    speed = generate.frames_per_second or (None if frames is None else frames.frames_per_second)
    if speed is None:
        raise ConfigError(
            f'{entry.place}: the times in "prompts" need the speed of the video, which is not known where latents are '
            "written; add --set generate.frames_per_second=N, in latent frames"
        )
    per_latent = 1 if frames is None else frames.frames_per_latent
    of_first = per_latent if goes_on(entry.inputs) else 1
    try:
        return later_prompts(entry.later, num_frames, speed, per_latent, of_first)
    except ConfigError as error:
        raise ConfigError(f"{entry.place}: {error}") from None


def _read_lines(path: Path) -> Iterator[_Entry]:
    for number, line in _lines(path):
        if not line.startswith("#"):
            place = f"{path.name}:{number}"
            yield _Entry(place, prompt=_prompt(place, line))


def _read_json_lines(path: Path) -> Iterator[_Entry]:
    for number, line in _lines(path):
        place = f"{path.name}:{number}"
        try:
            fields = read_json_object(line)
            check_texts(fields)
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
        yield _check_fields(place, fields, path.parent)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Line numbers and stripped lines, without the empty ones."""
    for number, line in enumerate(read_text(path, "--prompts", MAX_FILE_BYTES).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _check_fields(place: str, fields: dict[str, Any], folder: Path) -> _Entry:
    for name in fields:
        if name not in FIELDS:
            raise ConfigError(f"{place}: unknown field {unknown(name, FIELDS)}")
    id = fields.get("id")
    if id is not None:
        _check_id(place, id)
    inputs = {**input_files(place, fields.get("inputs"), folder), **given_frames(place, fields, folder)}
    prompt, later = fields.get("prompt"), tuple[TimedPrompt, ...]()
    if "prompts" in fields:
        for name in ("prompt", "embeddings"):
            if name in fields or name in inputs:
                raise ConfigError(f'{place}: "prompts" and "{name}" are both given; leave one of them out')
        try:
            prompt, later = read_timed_prompts(fields["prompts"])
        except ConfigError as error:
            raise ConfigError(f"{place}: {error}") from None
    for timed in later:
        _prompt(place, timed.prompt)
    return _Entry(
        place,
        prompt=_prompt(place, prompt),
        id=id,
        seed=_whole_number(place, fields, "seed", minimum=0, maximum=MAX_SEED),
        num_frames=_whole_number(place, fields, "num_frames", minimum=1, maximum=MAX_FRAMES),
        inputs=inputs,
        later=later,
    )


def _prompt(place: str, prompt: object) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ConfigError(f'{place}: "prompt" is {shown(prompt)}; it must be a non-empty string')
    if len(prompt) > MAX_PROMPT_CHARS:
        raise ConfigError(f"{place}: the prompt has {len(prompt)} characters; the most is {MAX_PROMPT_CHARS}")
    try:
        check_text(prompt)
    except ConfigError as error:
        raise ConfigError(f"{place}: the prompt {error}") from None
    return prompt.strip()


def _check_id(place: str, id: object) -> None:
    """Ids become file names, so they contain nothing that has a meaning for a shell or a file system."""
    if not isinstance(id, str) or not _ID.fullmatch(id) or len(id.encode()) > MAX_ID_BYTES:
        raise ConfigError(
            f'{place}: "id" is {shown(id)}; it names files, so use letters, digits, ".", "_" and "-", begin with '
            f"a letter or digit, and take at most {MAX_ID_BYTES} bytes"
        )


def _whole_number(place: str, fields: dict[str, Any], name: str, minimum: int, maximum: int) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise ConfigError(f'{place}: "{name}" is {shown(value)}; it must be a whole number from {minimum} to {maximum}')
    return value


def _default_id(index: int, width: int, prompt: str) -> str:
    """The index and the prompt's first words: (3, "A red circle!") -> "003-a-red-circle"."""
    words = re.findall(r"[a-z0-9]+", prompt.lower())
    slug = "-".join(words)
    if len(slug) > _SLUG_LENGTH:
        slug = slug[: _SLUG_LENGTH + 1].rpartition("-")[0] or slug[:_SLUG_LENGTH]
    return f"{index:0{width}d}-{slug}".rstrip("-")


def _refuse_duplicates(requests: list[VideoRequest], entries: list[_Entry]) -> None:
    """Ids are compared without case: on some file systems A.mp4 and a.mp4 are the same file."""
    places: dict[str, str] = {}
    for request, entry in zip(requests, entries, strict=True):
        key = request.id.casefold()
        if key in places:
            raise ConfigError(f'{entry.place}: id "{request.id}" is already used in {places[key]}; give each its own')
        places[key] = entry.place
