"""What a user of vLLM-Omni sets: the entry "pagedvid" of the stage's `model_config`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from pagedvid.arguments import instance_of, whole_number
from pagedvid.cache.spec import STREAM_CODECS
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.errors import ConfigError
from pagedvid.units import parse_bytes

ENTRY = "pagedvid"


@dataclass(frozen=True)
class PagedSettings:
    """Settings of the cache of one worker. Raises ConfigError."""

    codecs: StreamCodecs = field(default_factory=StreamCodecs)
    correction: str | None = None
    """As in `CacheSpec`; None: what suits the codecs."""
    tables: str | None = None
    """The file that klt codecs need."""
    memory: int | None = None
    """Bytes for pages and all else that a session keeps; None: the share of free memory (`gpu_memory_fraction`) that
    vLLM-Omni would give its own pool."""
    sessions: int | None = None
    """Most sessions at once; None: what the model's pipeline asks for."""

    def __post_init__(self) -> None:
        instance_of(StreamCodecs, "codecs", self.codecs, STREAM_CODECS, ConfigError)
        if self.sessions is not None:
            whole_number("sessions", self.sessions, 1, error=ConfigError)

    @classmethod
    def read(cls, model_config: Mapping[str, Any]) -> PagedSettings:
        """Of a stage's `model_config`: plain values, as a YAML file has them. `codecs` is a name such as "int4/int2",
        or a mapping of the arguments of `StreamCodecs`. Raises ConfigError."""
        given = model_config.get(ENTRY, {})
        instance_of(Mapping, ENTRY, given, '{"codecs": "int2", "memory": "8GiB"}', ConfigError)  # type: ignore[type-abstract]
        known = {each.name for each in fields(cls)}
        unknown = sorted(set(given) - known)
        if unknown:
            raise ConfigError(
                f"unknown settings {', '.join(unknown)} in {ENTRY}; allowed are {', '.join(sorted(known))}"
            )
        values = dict(given)
        if isinstance(values.get("codecs"), str):
            values["codecs"] = StreamCodecs(values["codecs"])
        elif isinstance(values.get("codecs"), Mapping):
            values["codecs"] = _codecs(values["codecs"])
        if values.get("memory") is not None:
            values["memory"] = parse_bytes(values["memory"])
        return cls(**values)


def _codecs(arguments: Mapping[str, Any]) -> StreamCodecs:
    try:
        return StreamCodecs(**arguments)
    except TypeError as error:
        raise ConfigError(
            f"codecs cannot be read: {error}; give {STREAM_CODECS} or a mapping of its arguments"
        ) from None
