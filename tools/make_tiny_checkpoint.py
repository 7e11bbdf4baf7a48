"""Writes a tiny checkpoint with random weights in the published layout of a model, to try loading and generating.

    python tools/make_tiny_checkpoint.py magi-1-4.5b runs/tiny-magi

writes shards with their index, the configuration file, and in `inputs` the files that a request refers to
(captions.safetensors; for HY-WorldPlay embeddings.safetensors and trajectory.json). The videos show nothing.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import tiny_worldplay
from pagedvid.models.magi1.network import MagiNetwork
from pagedvid.models.magi1.spec import PUBLISHED, MagiConfig, NetworkConfig

LAYOUTS = ("shards", "safetensors", "pt")
CAPTION_ROWS = 12


@dataclass(frozen=True)
class TinyCheckpoint:
    """The content of a checkpoint."""

    tensors: Mapping[str, Tensor]
    """Weights by their published names."""
    config: Mapping[str, Any]
    """The configuration file in the model's own form."""
    inputs: Mapping[str, Mapping[str, Any]]
    """Files that a request refers to, by name: tensors or JSON."""


def tiny_magi(name: str, seed: int) -> TinyCheckpoint:
    """Two layers with the structure of the published model of that name, 32 x 48 pixels, chunks of 2 latent frames."""
    published = PUBLISHED[name]
    network = replace(
        published.network,
        num_layers=2,
        hidden_size=64,
        ffn_hidden_size=96,
        num_attention_heads=4,
        num_query_groups=2,
        kv_channels=16,
        in_channels=8 if published.network.half_channel_vae else 4,
        caption_channels=24,
        caption_max_length=64,
    )
    module = MagiNetwork(network)
    draw = torch.Generator().manual_seed(seed)
    fill(module, draw)
    captions = {
        "embeddings": torch.randn(CAPTION_ROWS, network.caption_channels, generator=draw),
        "mask": torch.ones(CAPTION_ROWS, dtype=torch.int64),
    }
    return TinyCheckpoint(module.state_dict(), magi_settings(published, network), {"captions.safetensors": captions})


def magi_settings(published: MagiConfig, network: NetworkConfig) -> dict[str, Any]:
    """A configuration file with the sections of SandAI's files."""
    sampling, model = published.sampling, vars(network)
    return {
        "model_config": {"model_name": "videodit_ardf", "apply_layernorm_1p": True, **model},
        "runtime_config": {
            "cfg_number": sampling.cfg_number,
            "num_steps": sampling.num_steps,
            "window_size": sampling.window_size,
            "noise2clean_kvrange": list(sampling.noise2clean_kvrange),
            "video_size_h": 32,
            "video_size_w": 48,
            "chunk_width": 2,
            "fps": 24,
        },
        "engine_config": {"distill": sampling.distill},
    }


def tiny_worldplay_model(name: str, seed: int) -> TinyCheckpoint:
    """HY-WorldPlay, from tiny_worldplay.py."""
    draw = torch.Generator().manual_seed(seed)
    make = tiny_worldplay.tiny_8b if name == "hy-worldplay-8b" else tiny_worldplay.tiny_wan5b
    module, facts, inputs = make(draw)
    fill(module, draw)
    return TinyCheckpoint(module.state_dict(), facts, inputs)


def fill(module: nn.Module, draw: torch.Generator) -> None:
    """Fills parameters with random numbers that keep activations near one."""
    for parameter in module.parameters():
        fan_in = parameter[0].numel() if parameter.ndim > 1 else 25
        parameter.data = torch.randn(parameter.shape, generator=draw) / fan_in**0.5


MAKERS: dict[str, Callable[[str, int], TinyCheckpoint]] = {
    **dict.fromkeys(PUBLISHED, tiny_magi),
    **dict.fromkeys(("hy-worldplay-8b", "hy-worldplay-5b"), tiny_worldplay_model),
}
"""By the name of the model. Every published layout needs a maker."""


def write(checkpoint: TinyCheckpoint, folder: Path, layout: str = "shards", num_shards: int = 2) -> None:
    """Writes the files of a checkpoint into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(checkpoint.config), indent=2) + "\n")
    tensors = {name: tensor.contiguous() for name, tensor in checkpoint.tensors.items()}
    if layout == "pt":
        torch.save(tensors, folder / "model.pt")
    elif layout == "safetensors":
        save_file(tensors, folder / "model.safetensors")
    else:
        _write_shards(tensors, folder, num_shards)
    for name, content in checkpoint.inputs.items():
        (folder / "inputs").mkdir(exist_ok=True)
        if name.endswith(".json"):
            (folder / "inputs" / name).write_text(json.dumps(content, indent=1) + "\n")
        else:
            save_file(dict(content), folder / "inputs" / name)


def _write_shards(tensors: Mapping[str, Tensor], folder: Path, num_shards: int) -> None:
    names = list(tensors)
    weight_map = {}
    for number in range(num_shards):
        file = f"model-{number + 1:05d}-of-{num_shards:05d}.safetensors"
        mine = names[number::num_shards]
        save_file({name: tensors[name] for name in mine}, folder / file)
        weight_map |= dict.fromkeys(mine, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=sorted(MAKERS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=LAYOUTS, default="shards")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write(MAKERS[arguments.model](arguments.model, arguments.seed), arguments.folder, arguments.layout)
    print(f"{arguments.model}, tiny and random: {arguments.folder}")


if __name__ == "__main__":
    main()
