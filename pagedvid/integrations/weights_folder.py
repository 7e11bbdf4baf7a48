"""Checks of a folder of weights that a library loads: they name errors earlier or more clearly than the library."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pagedvid.errors import ConfigError
from pagedvid.files.paths import is_file, is_folder, problem_of_content, readable_file
from pagedvid.files.tensor_files import refuse_codes, refuse_non_finite, safetensors_facts, says_quantized
from pagedvid.shown import named

_READ = (".json", ".safetensors", ".bin", ".model", ".txt")
"""Suffixes of files that the libraries read."""


def check_before_loading(folder: Path) -> None:
    """Raises ConfigError for pipes and the like, on which a library would wait forever, and for quantized weights that
    config.json does not declare: the library would not apply their scales."""
    for entry in _entries(folder):
        if not is_folder(entry) and not is_file(entry):
            readable_file(entry)
    for file in _entries(folder):
        if file.suffix == ".safetensors" and not problem_of_content(file) and not says_quantized(folder):
            refuse_codes(file, {name: facts.dtype for name, facts in safetensors_facts(file).items()}, folder)


def check_after_loading(model: Any, folder: Path) -> None:
    """Raises ConfigError for weights with NaN or infinity."""
    for name, parameter in model.named_parameters():
        refuse_non_finite(parameter, name, folder)


def likely_reason(folders: Iterable[Path], error: Exception) -> str:
    """Why a library could not load them, in one line: the first damaged file, or else the library's own message."""
    for file in (file for folder in folders for file in _entries(folder) if file.suffix in _READ and is_file(file)):
        if problem := problem_of_content(file):
            return f"{file.name} {problem}"
    return " ".join(str(error).split())


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir()) if is_folder(folder) else []
    except OSError as error:
        raise ConfigError(f"{named(folder)} cannot be read: {error.strerror}") from error
