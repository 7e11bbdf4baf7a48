"""Model cards and presets: their files, how a card is read, and which ones exist.

Every wrong key or value of a card is an error that names it. Cards come with pagedvid or from a folder of the user's,
where a card replaces a shipped one of the same name; the path of a YAML file is a name too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pagedvid
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.cards import ModelCard, Published, Resolution
from pagedvid.capacity.look_back import LookBack, RebuiltLookBack, SlidingLookBack, read_look_back
from pagedvid.config.file import load_config
from pagedvid.config.rules import Rule, number, one_of, size, text, whole
from pagedvid.config.sections import CacheConfig
from pagedvid.errors import ConfigError
from pagedvid.files.plain_yaml import MAX_YAML_BYTES, YamlError, read_scalar
from pagedvid.files.text import read_text
from pagedvid.shown import named, shown, unknown
from pagedvid.units import format_bytes

PACKAGE = Path(pagedvid.__file__).parent

MAX_COUNT = 2**12
"""Channels, frames, steps, strides; more is a typing mistake."""
MAX_TABLES = 2**8
"""Layers; KV heads."""


def config_folder(kind: str) -> Path:
    """The folder of shipped cards ("models") or presets ("presets").

    A wheel has configs/ inside the package; a checkout has it next to the package.
    """
    inside = PACKAGE / "configs" / kind
    return inside if inside.is_dir() else PACKAGE.parent / "configs" / kind


def all_cards(own_folder: Path | None = None) -> dict[str, tuple[ModelCard, Path]]:
    """Every card with its file, by name. Raises ConfigError for a card or folder that cannot be read."""
    if own_folder is not None and not own_folder.is_dir():
        raise ConfigError(f"--models {named(own_folder)} is not a folder; give one with model cards (*.yaml)")
    cards: dict[str, tuple[ModelCard, Path]] = {}
    for folder in (config_folder("models"), own_folder):
        if folder is not None:
            cards.update(_cards_in(folder))
    return dict(sorted(cards.items()))


def _cards_in(folder: Path) -> dict[str, tuple[ModelCard, Path]]:
    cards: dict[str, tuple[ModelCard, Path]] = {}
    for path in sorted(folder.glob("*.yaml")):
        card = read_card(path)
        if card.name in cards:
            raise ConfigError(f"{path} and {cards[card.name][1]} both describe {card.name!r}; rename one of them")
        cards[card.name] = (card, path)
    return cards


def find_card(name: str, own_folder: Path | None = None) -> ModelCard:
    """The card of that name or file. Raises ConfigError with the closest names."""
    if name.endswith((".yaml", ".yml")):
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"model card {named(name)} does not exist; `pagedvid models` lists the known models")
        return read_card(path)
    cards = all_cards(own_folder)
    if name in cards:
        return cards[name][0]
    close = get_close_matches(name.lower(), cards, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(close)}?" if close else f"known are {', '.join(cards)}."
    raise ConfigError(
        f"unknown model {shown(name)}; {hint} `pagedvid models` lists all; a path to a YAML card works too"
    )


def presets() -> dict[str, StreamCodecs]:
    """The codecs of every shipped preset, by name, finest first.

    Where a preset spends bits by a model's profile, which a card does not have, it is klt with as many bits in all
    heads: that takes as many bytes.
    """
    paths = config_folder("presets").glob("*.yaml")
    found = {path.stem: _codecs(load_config(path).cache) for path in paths}
    return dict(sorted(found.items(), key=lambda item: -_bits(item[1])))


def _codecs(cache: CacheConfig) -> StreamCodecs:
    history = cache.codec if cache.bits is None else f"{cache.codec}{cache.bits:g}"
    return StreamCodecs(history, cache.sink_codec, cache.newest_codec, cache.layer_codecs)


def _bits(codecs: StreamCodecs) -> float:
    return codecs.steady.keys.bits + codecs.steady.values.bits


def read_card(path: Path) -> ModelCard:
    """A card from its file. Raises ConfigError naming the file and the key."""
    values = _read_mapping(path)
    known = {item.name: item for item in dataclasses.fields(ModelCard)}
    for key in values:
        if key not in known:
            raise ConfigError(f"{path.name}: unknown key {unknown(str(key), tuple(known))}")
    for key, item in known.items():
        if key not in values and item.default is item.default_factory is dataclasses.MISSING:
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
    if card.block and card.num_layers * card.block["bf16"] >= card.weights.get("bf16", 0):
        raise ConfigError(
            f"{path.name}: {card.num_layers} blocks of {format_bytes(card.block['bf16'])} are not less than weights: "
            f"{{bf16: {format_bytes(card.weights.get('bf16', 0))}}}; give the bytes of all weights and of one block"
        )
    if card.block and "fp8" in card.weights:
        raise ConfigError(f"{path.name}: weights in fp8 follow from block; remove fp8 from weights")
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


def _block(value: Any) -> dict[str, int]:
    if set(value) != {"bf16", "fp8"}:
        raise ValueError
    return {key: _bytes(value[key]) for key in ("bf16", "fp8")}


def _branches(value: Any) -> tuple[str, ...]:
    names = tuple(str(text("a name").read(name)) for name in value)
    if isinstance(value, str) or not names or len(set(names)) < len(names):
        raise ValueError
    return names


def _published(value: Any) -> tuple[Published, ...]:
    return tuple(
        Published(read_look_back(entry["window"]), _bytes(entry["bytes"]), str(entry["source"])) for entry in value
    )


def _window(value: Any) -> LookBack:
    if set(value) == {"memory_frames"}:
        return RebuiltLookBack(_whole(value["memory_frames"], 1))
    if set(value) == {"sink_chunks", "recent_chunks"}:
        return SlidingLookBack(_whole(value["sink_chunks"], 0), _whole(value["recent_chunks"], 1))
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
    "block": (_block, "bytes of one block in both formats: {bf16: 93MB, fp8: 47MB}"),
    "vae_features": (_bytes, "a size, such as 3.8GB"),
    "current_frames": _COUNT,
    "branches": (_branches, "a list of different names, such as [cond, uncond]"),
    "forwards_per_step": _by_rule(number(1, 16)),
    "original_copies": _by_rule(whole(1, 16)),
    "published": (_published, "a list of {window, bytes, source}"),
}


def _read_mapping(path: Path) -> dict[str, object]:
    try:
        values = read_scalar(read_text(path, "model card", MAX_YAML_BYTES))
    except YamlError as error:
        raise ConfigError(f"{path.name}:{error.line}: {error.reason}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path.name} must consist of `key: value` lines")
    return values
