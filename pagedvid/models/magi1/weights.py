"""MAGI-1's published weights, and the configuration file that may be next to them."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagedvid.cache.window import Window
from pagedvid.config.sections import ModelConfig
from pagedvid.engine.protocol import ModelSpec
from pagedvid.engine.schedule import Schedule
from pagedvid.errors import ConfigError
from pagedvid.files.paths import is_file, is_folder, read_json
from pagedvid.models.common.checkpoint_files import SPECIAL_TOKENS_FILE_NAME, needed_weights, path_or_none
from pagedvid.models.common.network_weights import load_network
from pagedvid.models.common.text_encoder import TextEncoder, t5_encoder
from pagedvid.models.magi1.network import MagiNetwork, channel_order
from pagedvid.models.magi1.pipeline import MagiModel
from pagedvid.models.magi1.schedule import magi_schedule
from pagedvid.models.magi1.spec import PUBLISHED, MagiConfig, geometry_of
from pagedvid.models.magi1.special_tokens import SHIPPED, SpecialTokens, check_names, read_special_tokens
from pagedvid.shown import named

logger = logging.getLogger(__name__)

LARGEST = 1_000_000
"""Of any number in a configuration file."""


def model_spec(config: ModelConfig) -> ModelSpec:
    """For the registry. Raises ConfigError."""
    magi = config_of(config.name, path_or_none(config.weights))
    if config.special_tokens != "auto":
        check_names(config.special_tokens)

    def schedule(num_frames: int, num_denoise_steps: int | None, window: Window) -> Schedule:
        return magi_schedule(magi.sampling, magi.frames.chunk_width, num_denoise_steps, num_frames)

    def load(prompts: Sequence[str]) -> MagiModel:
        weights = needed_weights(config)
        if config.vae is not None:
            raise ConfigError(
                f"{config.name} has a VAE of its own that no library here has: leave model.vae out, latents come out"
            )
        special = special_tokens_of(config, weights, magi.network.caption_channels)
        folder, network = path_or_none(config.text_encoder), magi.network
        width, place = network.caption_channels, config.device_of_text_encoder
        encoder = t5_encoder(folder, "t5", width, place, prompts, network.caption_max_length)
        return load_magi(magi, weights, config, encoder, special)

    return ModelSpec(geometry_of(magi), schedule, load, writes_latents=True)


def load_magi(
    magi: MagiConfig,
    weights: Path,
    config: ModelConfig | None = None,
    text_encoder: TextEncoder | None = None,
    special_tokens: SpecialTokens | None = None,
) -> MagiModel:
    """The model with published weights, read shard by shard. `config` says where and in which number format; None: as
    by default. Raises ConfigError when they do not fit `magi`."""
    config = config or ModelConfig()
    with torch.device("meta"):
        network = MagiNetwork(magi.network, getattr(torch, config.dtype))
    reorder = partial(in_order, order=channel_order(magi.network.kv_channels))
    load_network(network, network.videodit_blocks.layers, weights, config, convert=reorder)
    return MagiModel(magi, network, text_encoder, special_tokens)


def special_tokens_of(config: ModelConfig, weights: Path, channels: int) -> SpecialTokens | None:
    """The special tokens of a configuration, from the file next to the weights; None: there are none.

    Raises ConfigError where tokens are named and the file is missing, does not hold them, or no prompt is encoded.
    """
    file = (weights if is_folder(weights) else weights.parent) / SPECIAL_TOKENS_FILE_NAME
    names, for_null = config.special_tokens, config.null_special_tokens
    if names == "auto":
        names = SHIPPED if is_file(file) else ()
        if not names and config.text_encoder is not None:
            logger.warning("prompts get no special tokens, unlike in MAGI-1's own scripts: there is no %s", named(file))
    elif names and config.text_encoder is None:
        raise ConfigError(
            "model.special_tokens are for prompts that are encoded here, and caption files are taken as they are; set "
            "model.text_encoder, or leave model.special_tokens out"
        )
    if not names and not for_null:
        return None
    if not is_file(file):
        raise ConfigError(
            f"{named(file)} is missing, from which special tokens are read; copy it from example/assets of MAGI-1's "
            "repository, or leave model.special_tokens and model.null_special_tokens out"
        )
    return read_special_tokens(file, names, for_null, channels)


def in_order(name: str, tensor: Tensor, order: Tensor) -> Tensor:
    """A published tensor with the channels of queries and keys in `channel_order`; other tensors as they are."""
    if len(tensor) % len(order):
        return tensor
    if name.endswith(("linear_qkv.q.weight", "linear_qkv.k.weight")):
        return tensor.unflatten(0, (-1, len(order)))[:, order].flatten(0, 1)
    if ".q_layernorm." in name or ".k_layernorm." in name:
        return tensor[order]
    return tensor


def config_of(name: str, weights: Path | None) -> MagiConfig:
    """The published configuration `name`, changed by the configuration file next to the weights if there is one.

    That file is config.json, or the only *_config.json, in the folder. Raises ConfigError.
    """
    config = PUBLISHED[name]
    folder = None if weights is None else weights if is_folder(weights) else weights.parent
    if folder is None:
        return config
    own = folder / "config.json"
    found = [own] if is_file(own) else sorted(folder.glob("*_config.json"))
    return read_config(found[0], config) if len(found) == 1 else config


def read_config(path: Path, base: MagiConfig) -> MagiConfig:
    """`base` with what a configuration file of SandAI's layout says. Keys that mean nothing here are ignored.

    Raises ConfigError for a file that cannot be read and for values that cannot be run.
    """
    content = read_json(path)
    try:
        model, runtime, engine = (
            dict(content.get(key, {})) for key in ("model_config", "runtime_config", "engine_config")
        )
    except (ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"{named(path)} is not a configuration of MAGI-1 ({error!r})") from error
    settings = {**model, **runtime, **engine}
    for side in ("h", "w"):
        if f"video_size_{side}" in settings:
            pixels = settings[f"video_size_{side}"]
            if type(pixels) is not int or pixels % 8:
                raise ConfigError(f"{path}: video_size_{side} is {pixels}; it must be a multiple of 16")
            settings["latent_height" if side == "h" else "latent_width"] = pixels // 8
    return MagiConfig(
        base.name,
        _changed(base.network, settings, path),
        _changed(base.frames, settings, path),
        _changed(base.sampling, settings, path),
    )


def _changed(section: Any, settings: Mapping[str, Any], path: Path) -> Any:
    known = {item.name for item in dataclasses.fields(section)}
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items() if key in known
    }
    try:
        for key, value in values.items():
            _check_kind(key, value, getattr(section, key))
        return replace(section, **values)
    except ConfigError as error:
        raise ConfigError(f"{named(path)}: {error}") from error


def _check_kind(key: str, value: Any, known: Any) -> None:
    """Raises ConfigError for a value of another kind than the known one, or beyond any use."""
    if isinstance(known, tuple) and isinstance(value, tuple):
        for part in value:
            _check_kind(key, part, known[0])
        return
    is_number = isinstance(known, int | float) and not isinstance(known, bool)
    if is_number and type(value) in (int, type(known)) and 0 <= value <= LARGEST:
        return
    if is_number or type(value) is not type(known):
        allowed = f"{'a whole number' if type(known) is int else 'a number'} from 0 to {LARGEST}"
        if not is_number:
            allowed = f"of the kind of {known!r}"
        raise ConfigError(f"{key} is {value!r}; it must be {allowed}")
