"""Checkpoints in the names of the original Wan repository, as Self-Forcing, CausVid, Krea, LongLive and Skywork publish
them.

    Self-Forcing    .pt, {"generator": table, "generator_ema": table, "critic": ...}, each part left out or not
    CausVid         .pt, {"generator": table}
    LongLive        .pt, {"generator": table}, {"model": table} or a table
    Krea, Skywork   .safetensors, one table, in shards or not

A table's names are `model.blocks.0.self_attn.q.weight`: the wrapper's `model.` (checkpoint_names.py), then the names of
Wan's own network (names.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from pagedvid.errors import ConfigError
from pagedvid.files.paths import is_file, is_folder, read_json
from pagedvid.models.common.checkpoint import tensor_shapes
from pagedvid.models.wan.base.names import library_name
from pagedvid.shown import named

WAN_HEAD_DIM = 128
"""Of all published sizes."""


def transformer_config(path: Path, prefer_ema: bool = True) -> dict[str, Any]:
    """Arguments of diffusers' transformer for a checkpoint file, or a folder with one; no tensor is read.

    Sizes are those of the tensors. They do not show how channels divide into heads: `num_heads` in a config.json next
    to them does (Wan publishes one), otherwise heads have 128 channels. Raises ConfigError.
    """
    shapes = {library_name(name): shape for name, shape in tensor_shapes(path, prefer_ema).items()}
    facts = _facts_next_to(path)
    try:
        width, in_channels, *patch = shapes["patch_embedding.weight"]
        num_layers = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
        num_heads = int(facts.get("num_heads", width // WAN_HEAD_DIM))
        config = {
            "patch_size": tuple(patch),
            "num_attention_heads": num_heads,
            "in_channels": in_channels,
            "out_channels": shapes["proj_out.weight"][0] // prod(patch),
            "text_dim": shapes["condition_embedder.text_embedder.linear_1.weight"][1],
            "freq_dim": shapes["condition_embedder.time_embedder.linear_1.weight"][1],
            "ffn_dim": shapes["blocks.0.ffn.net.0.proj.weight"][0],
            "num_layers": num_layers,
            "cross_attn_norm": "blocks.0.norm2.weight" in shapes,
            "eps": float(facts.get("eps", 1e-6)),
        }
    except (KeyError, IndexError, ValueError, TypeError, ArithmeticError) as error:
        raise ConfigError(
            f"{named(path)} is not a checkpoint of a Wan transformer ({error!r}); give one in the names of Wan's "
            "repository, as Self-Forcing publishes it, or a folder in the layout of diffusers"
        ) from error
    if num_heads < 1 or width % num_heads:
        raise ConfigError(
            f"{path} has {width} channels, not {num_heads} equal heads; write num_heads into a config.json next to it"
        )
    return {**config, "attention_head_dim": width // num_heads}


def _facts_next_to(path: Path) -> Mapping[str, Any]:
    file = (path if is_folder(path) else path.parent) / "config.json"
    if not is_file(file):
        return {}
    facts = read_json(file, "download it again or remove it")
    if not isinstance(facts, dict):
        raise ConfigError(f"{file} holds a {type(facts).__name__}, not a table of settings")
    return facts
