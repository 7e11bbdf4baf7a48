"""Which model cards and presets exist: those that come with pagedvid, and a folder of one's own.

A card of one's own wins over a shipped one with the same name. A path to a YAML file is a name too.
"""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

import pagedvid
from pagedvid.cache.stream_codecs import StreamCodecs
from pagedvid.capacity.card_file import read_card
from pagedvid.capacity.model_card import ModelCard
from pagedvid.codecs.page import read_codec
from pagedvid.config.file import load_config
from pagedvid.errors import ConfigError
from pagedvid.shown import named, shown

PACKAGE = Path(pagedvid.__file__).parent


def config_folder(kind: str) -> Path:
    """The folder of shipped cards ("models") or presets ("presets").

    A wheel carries configs/ inside the package; a checkout has it beside the package.
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
    """The codecs of every shipped preset, by name, finest first."""
    paths = config_folder("presets").glob("*.yaml")
    found = {path.stem: load_config(path).cache.stream_codecs for path in paths}
    return dict(sorted(found.items(), key=lambda item: -_bits(item[1])))


def _bits(codecs: StreamCodecs) -> float:
    return read_codec(codecs.steady.keys).bits + read_codec(codecs.steady.values).bits
