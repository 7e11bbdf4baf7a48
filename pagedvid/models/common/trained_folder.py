"""The folder of a model that pagedvid trains itself: `model.safetensors` (float16) and `config.json`, which holds the
sizes of the network, how it was trained, and what else the model wants to find again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn

from pagedvid.errors import ConfigError
from pagedvid.files.paths import exists, is_folder, read_json
from pagedvid.shown import named, short, shown

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Sizes = TypeVar("Sizes", bound="DataclassInstance")
WEIGHTS_FILE, CONFIG_FILE = "model.safetensors", "config.json"
CONTENT = f"a folder with {CONFIG_FILE} and {WEIGHTS_FILE}"
LARGEST_SIZE = 10_000
"""Of any number among the sizes."""


def save_folder(
    network: nn.Module, sizes: DataclassInstance, folder: Path, facts: Mapping[str, Any], **more: object
) -> None:
    """Writes both files. `facts`: how the network was trained. `more`: further entries of the config."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.to(torch.float16).contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, folder / WEIGHTS_FILE)
    config = {"architecture": asdict(sizes), **more, "training": dict(facts)}
    (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n")


def require_folder(folder: Path, model_name: str) -> Path:
    """The folder. Raises ConfigError when there is none."""
    if not is_folder(folder):
        found = "is a file" if exists(folder) else "does not exist"
        raise ConfigError(f"model.weights is {named(folder)}, which {found}; the {model_name} model takes {CONTENT}")
    return folder


def read_config(path: Path, model_name: str) -> Mapping[str, Any]:
    """The entries of a config.json. Raises ConfigError for a file that has no sizes."""
    config = read_json(path, f"give {CONTENT}")
    if not isinstance(config, dict) or not isinstance(config.get("architecture"), dict):
        raise ConfigError(f"{named(path)} is not a config of the {model_name} model; export the weights again")
    return config


def read_sizes(config: Mapping[str, Any], sizes_type: type[Sizes], path: Path) -> Sizes:
    """The sizes of a config as the dataclass whose defaults they may leave out. Raises ConfigError."""
    architecture = config["architecture"]
    odd = [name for name, size in architecture.items() if type(size) is not int or not 1 <= size <= LARGEST_SIZE]
    if odd:
        raise ConfigError(
            f"{named(path)}: {shown(odd[0])} is {shown(architecture[odd[0]])}; it must be a whole number from 1 to "
            f"{LARGEST_SIZE}"
        )
    if architecture.get("width", 0) % (2 * architecture.get("num_heads", 1)):
        raise ConfigError(f"{named(path)}: width is {architecture['width']}; it must be a multiple of twice num_heads")
    try:
        return sizes_type(**architecture)
    except TypeError as error:
        raise ConfigError(
            f"{named(path)}: {short(str(error))}; allowed: {', '.join(field.name for field in fields(sizes_type))}"
        ) from error
