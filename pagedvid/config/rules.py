"""What a setting may be: rules that turn what was written ("2GiB") into what the program uses (bytes)."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pagedvid.codecs.assignment import CodecPair, read_layers, write_layers
from pagedvid.codecs.registry import codec_names
from pagedvid.config.loras import Lora, read_lora
from pagedvid.errors import ConfigError
from pagedvid.files.text import check_text
from pagedvid.units import UNITS, format_setting_bytes, parse_bytes


@dataclass(frozen=True)
class Rule:
    """The values that a field allows: `read` returns the value to use, and raises ValueError for any other."""

    allowed: str
    read: Callable[[object], object]
    write: Callable[[Any], object] = lambda value: value
    """Turns the value back into what a person writes."""

    def __or__(self, other: Rule) -> Rule:
        """Either of two rules: the first one reads the value if it allows it, otherwise the second."""

        def read(value: object) -> object:
            try:
                return self.read(value)
            except ValueError:
                return other.read(value)

        return Rule(f"{self.allowed}, or {other.allowed}", read)


def _need(is_allowed: bool) -> None:
    if not is_allowed:
        raise ValueError


def one_of(*names: str) -> Rule:
    """One of these words."""

    def read(value: object) -> object:
        _need(value in names)
        return value

    return Rule(f"one of {', '.join(names)}" if len(names) > 1 else names[0], read)


def whole(minimum: int, maximum: int) -> Rule:
    """A whole number from `minimum` to `maximum`."""

    def read(value: object) -> object:
        _need(isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum)
        return value

    return Rule(f"a whole number from {minimum} to {maximum}", read)


def number(minimum: float, maximum: float) -> Rule:
    """A number from `minimum` to `maximum`."""

    def read(value: object) -> object:
        _need(isinstance(value, int | float) and not isinstance(value, bool) and minimum <= value <= maximum)
        return float(value)  # type: ignore[arg-type]

    return Rule(f"a number from {minimum:.12g} to {maximum:.12g}", read)


def size() -> Rule:
    """A number of bytes, written with a unit or as a plain number."""

    def read(value: object) -> object:
        _need(isinstance(value, str | int) and not isinstance(value, bool))
        num_bytes = parse_bytes(value)  # type: ignore[arg-type]
        _need(num_bytes > 0)
        return num_bytes

    allowed = (
        f"a size above zero and at most 1024TiB, such as 2GiB (units: {', '.join(UNITS)}; a plain number counts bytes)"
    )
    return Rule(allowed, read, format_setting_bytes)


def text(allowed: str, pattern: str = r".+") -> Rule:
    """A non-empty string that fits a pattern."""

    def read(value: object) -> object:
        _need(isinstance(value, str) and re.fullmatch(pattern, value) is not None)
        check_text(value)  # type: ignore[arg-type]
        return value

    return Rule(allowed, read)


def flag() -> Rule:
    """True or false."""

    def read(value: object) -> object:
        _need(isinstance(value, bool))
        return value

    return Rule("true or false", read)


def nothing() -> Rule:
    """No value."""

    def read(value: object) -> object:
        _need(value is None)
        return None

    return Rule("null", read)


def codecs() -> Rule:
    """One codec, or one for keys and one for values."""

    def read(value: object) -> object:
        _need(isinstance(value, str))
        try:
            CodecPair.read(value)  # type: ignore[arg-type]
        except ConfigError as error:
            raise ValueError from error
        return value

    return Rule(f"a codec, or KEYS/VALUES such as int4/int2; codecs are {codec_names()}", read)


def layers() -> Rule:
    """Codecs of single layers: tuples in the program, a mapping in the file."""

    def read(value: object) -> object:
        if isinstance(value, tuple):
            return value
        _need(isinstance(value, dict))
        try:
            return read_layers(value)
        except ConfigError as error:
            raise ValueError from error

    return Rule("a mapping from layers to codecs, such as {0-1: int8, 5: int4/int2}", read, write_layers)


def loras() -> Rule:
    """Files of LoRAs, each with its scale: `Lora`s in the program, a list of texts in the file."""

    def read(value: object) -> object:
        _need(isinstance(value, list | tuple))
        return tuple(item if isinstance(item, Lora) else read_lora(item) for item in value)  # type: ignore[attr-defined]

    allowed = "a list of PATH or PATH:SCALE, such as [style.safetensors:0.8], with scales from -100 to 100"
    return Rule(allowed, read, lambda value: [str(lora) for lora in value])


def words_or(name: str) -> Rule:
    """This word alone, or a list of different words: a tuple in the program, a list in the file."""

    def read(value: object) -> object:
        if value == name:
            return value
        _need(isinstance(value, list | tuple))
        words: tuple[object, ...] = tuple(value)  # type: ignore[arg-type]
        _need(all(isinstance(word, str) and re.fullmatch(r"\w+", word) for word in words))
        _need(len(set(words)) == len(words))
        return words

    allowed = f"{name}, or a list of different words, such as [duration, hq]"
    return Rule(allowed, read, lambda value: value if value == name else list(value))


def setting(default: Any, rule: Rule) -> Any:
    """A dataclass field whose values `rule` reads."""
    return dataclasses.field(default=default, metadata={"rule": rule})
