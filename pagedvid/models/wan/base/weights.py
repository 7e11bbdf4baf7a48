"""Where the parts of a Wan-like model are, and how they are loaded: text encoder, transformer, VAE.

    folder/                     a pipeline in the layout of diffusers (model_index.json names its parts)
        transformer/            config.json and weights
        vae/  text_encoder/  tokenizer/

A pipeline's text encoder and VAE are used without being named. `weights` may also be a transformer alone, its folder
(config.json and weights) or a file; then text encoder and VAE are those that are named, or none.
Nothing is ever downloaded: a path that does not exist is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch

from pagedvid.config.sections import ModelConfig
from pagedvid.errors import ConfigError
from pagedvid.files.paths import exists, is_file, is_folder, read_json
from pagedvid.models.common.checkpoint_files import path_or_none
from pagedvid.models.common.lora import LoraMerge, check_loras
from pagedvid.models.common.network_weights import load_network
from pagedvid.models.wan.base.names import library_name
from pagedvid.models.wan.base.spec import TransformerShape, shape_of
from pagedvid.shown import named

if TYPE_CHECKING:
    from pagedvid.integrations.vae import VideoVae

NEEDED = ("patch_size", "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "text_dim",
          "num_layers", "rope_max_seq_len")  # fmt: skip
"""What a transformer's config.json must say."""
MAY_BE_NULL = ("out_channels",)
ORIGINAL_CLASS = "WanModel"
"""What config.json names in checkpoints of Wan's repository and of those that are made from it."""
LARGEST = 1_000_000
"""Of any size in a config.json."""
PURPOSE = "running this model"
"""Begins the error when diffusers is missing."""


@dataclass(frozen=True)
class WanParts:
    """Paths of the parts, None where there is none."""

    transformer: Path
    """A folder or file."""
    text_encoder: Path | None
    vae: Path | None


def find_parts(weights: Path, config: ModelConfig) -> WanParts:
    """The parts of the model at `weights`; those that are named come before a pipeline's own.

    Raises ConfigError for a path that does not exist, also of a LoRA.
    """
    check_loras(config.loras)
    encoder, vae = path_or_none(config.text_encoder), path_or_none(config.vae)
    for what, path in (("weights", weights), ("text_encoder", encoder), ("vae", vae)):
        if path is not None and not exists(path):
            raise ConfigError(
                f"model.{what} is {named(path)}, which does not exist; give a file or folder (nothing is downloaded)"
            )
    if not is_folder(weights / "transformer"):
        return WanParts(weights, encoder, vae)
    has_encoder = is_folder(weights / "text_encoder") and is_folder(weights / "tokenizer")
    return WanParts(
        weights / "transformer",
        encoder or (weights if has_encoder else None),
        vae or (weights / "vae" if is_folder(weights / "vae") else None),
    )


def library_config(transformer: Path, class_name: str) -> dict[str, Any] | None:
    """The arguments of a transformer's class from config.json in the layout of diffusers; None: there is no such file,
    or it is that of Wan's repository.

    Raises ConfigError when the folder holds another class.
    """
    file = transformer / "config.json"
    if not is_file(file):
        return None
    config = read_json(file)
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds a {type(config).__name__}, not a table of settings; download it again")
    found = config.get("_class_name")
    if found in (None, ORIGINAL_CLASS):
        return None
    if found != class_name:
        raise ConfigError(f"{transformer} holds a {found}; this model runs a {class_name}")
    missing = [name for name in NEEDED if name not in config]
    if missing:
        raise ConfigError(f"{file} lacks {', '.join(missing)}; download it again")
    patch = config["patch_size"]
    if not isinstance(patch, list) or len(patch) != 3:
        raise ConfigError(f"{file}: patch_size is {patch!r}; it must be three whole numbers")
    sizes = [(name, config[name]) for name in NEEDED if name != "patch_size"] + [("patch_size", side) for side in patch]
    for name, size in sizes:
        is_size = type(size) is int and 1 <= size <= LARGEST
        if not is_size and not (size is None and name in MAY_BE_NULL):
            raise ConfigError(f"{file}: {name} is {size!r}; it must be a whole number from 1 to {LARGEST}")
    return {name: value for name, value in config.items() if not name.startswith("_")}


def shape_of_config(config: Mapping[str, Any]) -> TransformerShape:
    """The integers of a transformer that is not loaded. Raises ConfigError for other than text to video."""
    return shape_of(SimpleNamespace(**config))


def load_transformer(class_name: str, sizes: Mapping[str, Any], path: Path, config: ModelConfig) -> Any:
    """A transformer of diffusers with the weights of a file or folder, in its own names or those of Wan's repository,
    shard by shard. `sizes`: arguments of its class. Raises ConfigError."""
    from pagedvid.integrations.diffusers_library import empty_transformer

    transformer = empty_transformer(class_name, sizes, PURPOSE, getattr(torch, config.dtype))
    merge = LoraMerge(config.loras, transformer.state_dict(), library_name)
    load_network(transformer, transformer.blocks, path, config, library_name, merge)
    return transformer


def load_vae(folder: Path | None, latent_channels: int, pixels_per_latent: int, device: str) -> VideoVae | None:
    """The VAE of a folder, which decodes chunk by chunk; None: there is none. Raises ConfigError for another model's.

    It computes in float32, as Wan's authors run their VAE: it is small compared with the transformer.
    """
    if folder is None:
        return None
    from pagedvid.integrations.vae import VideoVae

    vae = VideoVae(folder, device)
    found, wanted = (vae.latent_channels, vae.pixels_per_latent), (latent_channels, pixels_per_latent)
    if found != wanted:
        raise ConfigError(
            f"the VAE {folder} decodes {found[0]} channels to {found[1]} pixels a side; the transformer makes "
            f"{wanted[0]} channels for {wanted[1]} pixels. Give the VAE of the model"
        )
    vae.stream()  # refuses a VAE that cannot decode chunk by chunk before anything is generated
    return vae
