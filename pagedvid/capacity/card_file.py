"""Reads a model card from its YAML file; every wrong key or value is an error that names it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pagedvid.capacity.history import History, RebuiltHistory, SlidingHistory, read_history
from pagedvid.capacity.model_card import ModelCard, Published, Resolution
from pagedvid.config.rules import Rule, number, one_of, size, text, whole
from pagedvid.errors import ConfigError
from pagedvid.files.plain_yaml import MAX_YAML_BYTES, YamlError, read_scalar
from pagedvid.files.text import read_text
from pagedvid.shown import short, shown

MAX_COUNT = 2**12
"""Channels, frames, steps, strides; more is a slip of the keyboard."""
MAX_TABLES = 2**8
"""Layers, and KV heads."""


def read_card(path: Path) -> ModelCard:
    """A card from its file. Raises ConfigError naming the file and the key."""
    values = _read_mapping(path)
    known = {item.name: item for item in dataclasses.fields(ModelCard)}
    for key in values:
        if key not in known:
            close = get_close_matches(str(key), known, n=1)
            hint = f' - did you mean "{close[0]}"?' if close else ""
            raise ConfigError(f'{path.name}: unknown key "{short(str(key))}"{hint} (known: {", ".join(known)})')
    for key, item in known.items():
        if key not in values and item.default is dataclasses.MISSING:
            raise ConfigError(f'{path.name}: the key "{key}" is missing')
    card = ModelCard(**{key: _read_value(path, key, value) for key, value in values.items()})
    _check_card(path, card)
    return card


def _check_card(path: Path, card: ModelCard) -> None:
    if card.num_query_heads % card.num_kv_heads:
        raise ConfigError(
            f"{path.name}: num_query_heads is {card.num_query_heads}; it must be a multiple of num_kv_heads "
            f"{card.num_kv_heads}"
        )
    try:
        card.tokens_per_frame(card.resolution)
        _ = card.shape
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None


def _read_value(path: Path, key: str, value: object) -> Any:
    read, allowed = _READERS[key]
    try:
        return read(value)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {key}: {error}") from None
    except (ValueError, TypeError, KeyError):
        raise ConfigError(f"{path.name}: {key} is {shown(value)}; allowed is {allowed}") from None


def _by_rule(rule: Rule) -> tuple[Callable[[Any], object], str]:
    return rule.read, rule.allowed


def _triple(value: Any) -> tuple[int, ...]:
    time, rows, columns = value
    return tuple(_whole(amount, 1) for amount in (time, rows, columns))


def _weights(value: Any) -> dict[str, int]:
    formats = one_of("bf16", "fp8")
    return {str(formats.read(key)): _bytes(amount) for key, amount in dict(value).items()}


def _branches(value: Any) -> tuple[str, ...]:
    names = tuple(str(text("a name").read(name)) for name in value)
    if isinstance(value, str) or not names or len(set(names)) < len(names):
        raise ValueError
    return names


def _published(value: Any) -> tuple[Published, ...]:
    return tuple(
        Published(read_history(entry["window"]), _bytes(entry["bytes"]), str(entry["source"])) for entry in value
    )


def _window(value: Any) -> History:
    if set(value) == {"memory_frames"}:
        return RebuiltHistory(_whole(value["memory_frames"], 1))
    if set(value) == {"sink_chunks", "recent_chunks"}:
        return SlidingHistory(_whole(value["sink_chunks"], 0), _whole(value["recent_chunks"], 1))
    raise ValueError


def _whole(value: object, minimum: int) -> int:
    count = whole(minimum, MAX_COUNT).read(value)
    assert isinstance(count, int)
    return count


def _bytes(value: object) -> int:
    num_bytes = size().read(value)
    assert isinstance(num_bytes, int)
    return num_bytes


_COUNT = _by_rule(whole(1, MAX_COUNT))
_TABLES = _by_rule(whole(1, MAX_TABLES))
_READERS: dict[str, tuple[Callable[[Any], object], str]] = {
    "name": _by_rule(text("lower-case letters, digits, dots and dashes", r"[a-z0-9][a-z0-9.-]*")),
    "title": _by_rule(text("a text")),
    "num_layers": _TABLES,
    "num_query_heads": _COUNT,
    "num_kv_heads": _TABLES,
    "head_dim": _COUNT,
    "patch": (_triple, "three whole numbers: latent frames, rows, columns"),
    "vae_stride": (_triple, "three whole numbers: frames, rows, columns"),
    "resolution": (Resolution.parse, "WIDTHxHEIGHT"),
    "frames_per_second": _by_rule(number(0.01, 1000)),
    "frames_per_chunk": _COUNT,
    "denoise_steps": _COUNT,
    "window": (_window, "{sink_chunks: N, recent_chunks: N} or, when rebuilt for every chunk, {memory_frames: N}"),
    "weights": (_weights, "sizes by format: {bf16: 2.84GB, fp8: 1.42GB}"),
    "current_frames": _COUNT,
    "branches": (_branches, "a list of different names, such as [cond, uncond]"),
    "original_copies": _by_rule(whole(1, 16)),
    "published": (_published, "a list of {window, bytes, source}"),
}


def _read_mapping(path: Path) -> dict[str, object]:
    try:
        values = read_scalar(read_text(path, "model card", MAX_YAML_BYTES))
    except YamlError as error:
        raise ConfigError(f"{path.name}:{error.line}: {error.reason}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path.name} must hold `key: value` lines")
    return values
