"""Tiny models on disk in the layouts in which large ones are published.

The names of Wan's repository are listed here by hand, and matched with diffusers' by diffusers' own converter: nothing
comes from the code under test.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.integrations.tiny_parts import wan_vae, write_encoder, write_tokenizer
from tests.models.wan.base.tiny import CONFIG, TEXT_WIDTH, tiny_transformer

OUTSIDE_BLOCKS = (
    "patch_embedding",
    "text_embedding.0",
    "text_embedding.2",
    "time_embedding.0",
    "time_embedding.2",
    "time_projection.1",
    "head.head",
)
IN_ATTENTION = ("q", "k", "v", "o")


def original_names(num_layers: int) -> list[str]:
    """All tensors of a Wan text-to-video transformer, as wan/modules/model.py names them."""
    names = [f"{module}.{leaf}" for module in OUTSIDE_BLOCKS for leaf in ("weight", "bias")] + ["head.modulation"]
    for layer in range(num_layers):
        block = f"blocks.{layer}"
        for attention in ("self_attn", "cross_attn"):
            names += [f"{block}.{attention}.{part}.{leaf}" for part in IN_ATTENTION for leaf in ("weight", "bias")]
            names += [f"{block}.{attention}.norm_{part}.weight" for part in "qk"]
        names += [f"{block}.{part}.{leaf}" for part in ("ffn.0", "ffn.2", "norm3") for leaf in ("weight", "bias")]
        names.append(f"{block}.modulation")
    return names


def converted_names(num_layers: int) -> dict[str, str]:
    """diffusers' name by original name, as diffusers converts a single file."""
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    names = original_names(num_layers)
    marked = convert_wan_transformer_to_diffusers({name: torch.tensor(i) for i, name in enumerate(names)})
    return {names[int(mark)]: name for name, mark in marked.items()}


FPS_NAMES = {
    "fps_embedding.weight": "fps_embedding.weight",
    **{f"fps_projection.0.{leaf}": f"fps_projection.net.0.proj.{leaf}" for leaf in ("weight", "bias")},
    **{f"fps_projection.2.{leaf}": f"fps_projection.net.2.{leaf}" for leaf in ("weight", "bias")},
}
"""What SkyReels-V2 has besides (`inject_sample_info`): nn.Embedding, nn.Sequential(Linear, SiLU, Linear)."""


def original_table(transformer: Any, prefix: str = "model.") -> dict[str, Tensor]:
    """The transformer's tensors under their original names, behind what Self-Forcing's wrapper puts before them."""
    tensors = transformer.state_dict()
    knows_fps = getattr(transformer.config, "inject_sample_info", False)
    names = {**converted_names(transformer.config.num_layers), **(FPS_NAMES if knows_fps else {})}
    assert set(names.values()) == set(tensors)
    return {prefix + name: tensors[library].clone() for name, library in names.items()}


def write_self_forcing(folder: Path, **tables: Any) -> Path:
    """A .pt file with a table per transformer, and Wan's config.json, which tells the heads; returns the file."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {name: original_table(transformer) for name, transformer in tables.items()}
    torch.save({**content, "step": 600, "critic": {"x": torch.zeros(1)}}, folder / "self_forcing_dmd.pt")
    write_heads(folder)
    return folder / "self_forcing_dmd.pt"


def write_heads(folder: Path) -> None:
    """What of Wan's own config.json the tensors do not tell."""
    (folder / "config.json").write_text(json.dumps({"model_type": "t2v", "num_heads": CONFIG["num_attention_heads"]}))


def write_single_file(file: Path, transformer: Any) -> Path:
    """As Krea publishes: one .safetensors file, the wrapper's names."""
    file.parent.mkdir(parents=True, exist_ok=True)
    save_file(original_table(transformer), file)
    write_heads(file.parent)
    return file


def write_text_encoder(folder: Path) -> Path:
    """A UMT5 of the tiny transformers' text width, and its tokenizer, in folders of their own."""
    write_tokenizer(folder / "tokenizer")
    write_encoder(folder / "text_encoder", "umt5", TEXT_WIDTH)
    return folder


def write_vae(folder: Path, **changed: Any) -> Path:
    """Wan's VAE of 4 latent channels."""
    wan_vae(**changed).save_pretrained(folder)
    return folder


def write_transformer(folder: Path, class_name: str, seed: int = 0, **changed: Any) -> Any:
    """A transformer alone in the layout of diffusers; returns it."""
    transformer = tiny_transformer(class_name, seed, **changed)
    transformer.save_pretrained(folder)
    return transformer


def write_pipeline(folder: Path, class_name: str, seed: int = 0, **changed: Any) -> Any:
    """A whole pipeline in the layout of diffusers; returns the transformer in it."""
    transformer = write_transformer(folder / "transformer", class_name, seed, **changed)
    write_text_encoder(folder)
    write_vae(folder / "vae")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    return transformer
