"""Checkpoints: a video between two steps in a file, from which an engine in another process goes on bit by bit.

save_checkpoint(path, engine.checkpoint("a"), origin)
engine.restore(load_checkpoint(path, origin))

The file is safetensors (files/checked_tensors.py). Page bytes, latents, predictions and the decoder's state are its
tensors; everything else is JSON in its metadata (snapshot_fields.py).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pagedvid.cache.codec_fields import codecs_to_fields
from pagedvid.cache.spec import CacheSpec
from pagedvid.cache.window import Window
from pagedvid.engine.protocol import ModelGeometry
from pagedvid.engine.snapshot import JobSnapshot
from pagedvid.engine.snapshot_fields import snapshot_from_fields, snapshot_to_fields
from pagedvid.errors import ConfigError
from pagedvid.files.checked_tensors import read_checked, write_checked
from pagedvid.files.plain_json import object_with
from pagedvid.host_state import independent_of_host
from pagedvid.shown import named, short, shown

FORMAT = "pagedvid checkpoint 1"
"""Name and version; another version is not read."""
MAX_REASON_CHARS = 400
MAX_FACT_CHARS = 60
"""Longer facts are compared by their hash."""


@dataclass(frozen=True)
class Origin:
    """What a checkpoint and the engine that goes on from it must have in common."""

    model: str
    geometry: ModelGeometry
    cache: CacheSpec
    window: Window
    """As configured."""
    num_denoise_steps: int | None = None
    """None: the model's own number."""
    settings: Mapping[str, str | int | None] = field(default_factory=dict)
    """Of the model, such as its dtype and frame size."""
    files: Mapping[str, str | None] = field(default_factory=dict)
    """Fingerprints (files/fingerprint.py) of the model's files by what they are for; None: there is none."""

    def facts(self) -> dict[str, str | int | None]:
        """What must be equal, by name, in values that are short enough for a message."""
        spec, geometry = self.cache, {**asdict(self.geometry), "branches": list(self.geometry.branches)}
        given = {
            "model": self.model,
            **{f"model.{name}": value for name, value in self.settings.items()},
            **{f"files.{name}": value for name, value in self.files.items()},
            **{f"geometry.{name}": value for name, value in geometry.items()},
            **{f"cache.codecs.{name}": value for name, value in codecs_to_fields(spec.codecs).items()},
            **{f"cache.{name}": value for name, value in asdict(spec.shape).items()},
            "cache.correction_unit": spec.correction_unit,
            "cache.keys_arrive": spec.keys_arrive,
            **{f"window.{name}": value for name, value in asdict(self.window).items()},
            "denoise_steps": self.num_denoise_steps,
        }
        return {name: _brief(value) for name, value in given.items()}


def save_checkpoint(path: Path, snapshot: JobSnapshot, origin: Origin) -> None:
    """Writes a checkpoint and forces it to disk; an older file of that name is replaced once the new one is whole.

    Raises ConfigError when the file cannot be written, and for inputs of the request that no file can hold.
    """
    tensors: dict[str, Tensor] = {}
    fields = {"origin": origin.facts(), "video": snapshot_to_fields(snapshot, tensors)}
    write_checked(path, FORMAT, fields, tensors)


@independent_of_host
def load_checkpoint(path: Path, origin: Origin) -> JobSnapshot:
    """The snapshot in a checkpoint of this origin; its tensors are in memory of their own.

    Raises ConfigError for another origin, naming all that differs, and for a file that is missing, damaged, of another
    version or not a checkpoint at all.
    """

    def accept(fields: dict[str, Any]) -> None:
        written = object_with(("origin", "video"), fields, named(path))["origin"]
        _refuse_other_origin(path, written, origin.facts())

    fields, tensors = read_checked(path, FORMAT, accept)
    try:
        return snapshot_from_fields(fields["video"], tensors, origin.geometry, origin.cache)
    except ValueError as error:
        raise ConfigError(
            f"{named(path)} is no checkpoint that pagedvid writes: {short(str(error), MAX_REASON_CHARS)}; give a file "
            "of `save_checkpoint`"
        ) from error


def _refuse_other_origin(path: Path, written: object, here: Mapping[str, str | int | None]) -> None:
    there = object_with(here.keys(), written, f"what {named(path)} was made with")
    differing = [
        f"{name} {shown(there[name])} (here {shown(here[name])})" for name in here if there[name] != here[name]
    ]
    if differing:
        raise ConfigError(
            f"{named(path)} was made with another model or other settings: {', '.join(differing)}. Go on from it with "
            "what it was made with, or make the video anew"
        )


def _brief(fact: Any) -> str | int | None:
    """The fact itself if it is plain and short, otherwise its beginning and its hash."""
    text = fact if isinstance(fact, str) else json.dumps(fact)
    if len(text) > MAX_FACT_CHARS:
        return f"{text[: MAX_FACT_CHARS // 2]} ... {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"
    return fact if fact is None or isinstance(fact, (str, int)) else text
