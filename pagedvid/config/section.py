"""What all sections of the settings have in common: every field is read by its rule (rules.py)."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from pagedvid.config.rules import Rule
from pagedvid.errors import ConfigError
from pagedvid.shown import shown


class Section:
    """Base class of the sections: applies every field's rule."""

    name_in_file: ClassVar[str]

    def __post_init__(self) -> None:
        """Reads every field through its rule. Raises `ConfigError`."""
        for name in self.field_names():
            object.__setattr__(self, name, self.read_field(name, getattr(self, name)))

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of the section's fields, in order."""
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    @classmethod
    def read_field(cls, name: str, value: object) -> object:
        """The value that field `name` takes when `value` is written. Raises `ConfigError`."""
        rule = cls._rule(name)
        try:
            return rule.read(value)
        except ValueError:
            raise ConfigError(f"{cls.name_in_file}.{name} is {shown(value)}; allowed is {rule.allowed}") from None

    def written_field(self, name: str) -> object:
        """The field as a person writes it: sizes with their unit."""
        return self._rule(name).write(getattr(self, name))

    @classmethod
    def _rule(cls, name: str) -> Rule:
        (field,) = (field for field in dataclasses.fields(cls) if field.name == name)  # type: ignore[arg-type]
        rule: Rule = field.metadata["rule"]
        return rule
