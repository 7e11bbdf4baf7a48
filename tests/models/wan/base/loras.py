"""LoRAs of the tiny transformers with random numbers, in the forms in which people have them.

What they come to is computed here in float64 from the names that diffusers gives the modules; names of Wan's
repository come from diffusers' own converter (published.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.models.wan.base.published import converted_names

RANK = 3
Pairs = dict[str, tuple[Tensor, Tensor]]
"""down [RANK, inputs] and up [outputs, RANK] by diffusers' name of the module."""


def linears(transformer: Any) -> list[str]:
    return [name for name, module in transformer.named_modules() if isinstance(module, torch.nn.Linear)]


def random_pairs(transformer: Any, modules: Sequence[str] | None = None, seed: int = 0) -> Pairs:
    draw = torch.Generator().manual_seed(seed)
    pairs = {}
    for name in linears(transformer) if modules is None else modules:
        outputs, *inputs = transformer.get_submodule(name).weight.shape
        down = torch.randn(RANK, *inputs, generator=draw) / 4
        up = torch.randn(outputs, RANK, *(1 for _ in inputs[1:]), generator=draw) / 4
        pairs[name] = (down, up)
    return pairs


def merged(transformer: Any, pairs: Pairs, factor: float) -> dict[str, Tensor]:
    """All tensors in float64, with factor * up @ down added."""
    tensors = {name: tensor.double() for name, tensor in transformer.state_dict().items()}
    for module, (down, up) in pairs.items():
        added = torch.einsum("or,ri->oi", up.double().flatten(1), down.double().flatten(1))
        tensors[f"{module}.weight"] += factor * added.view_as(tensors[f"{module}.weight"])
    return tensors


def original_module(num_layers: int) -> dict[str, str]:
    """The name in Wan's repository by diffusers' name of a module."""
    return {
        library.removesuffix(".weight"): original.removesuffix(".weight")
        for original, library in converted_names(num_layers).items()
        if library.endswith(".weight")
    }


def peft_file(pairs: Pairs, prefix: str = "transformer.", adapter: str = "") -> dict[str, Tensor]:
    """As diffusers and PEFT write them."""
    keys = {}
    for module, (down, up) in pairs.items():
        keys[f"{prefix}{module}.lora_A.{adapter}weight"] = down
        keys[f"{prefix}{module}.lora_B.{adapter}weight"] = up
    return keys


def wan_file(pairs: Pairs, names: Mapping[str, str], alpha: float | None, prefix: str = "diffusion_model.") -> dict:
    """As ComfyUI reads them."""
    keys = {}
    for module, (down, up) in pairs.items():
        keys[f"{prefix}{names[module]}.lora_down.weight"] = down
        keys[f"{prefix}{names[module]}.lora_up.weight"] = up
        if alpha is not None:
            keys[f"{prefix}{names[module]}.alpha"] = torch.tensor(alpha)
    return keys


def musubi_file(pairs: Pairs, names: Mapping[str, str], alpha: float) -> dict[str, Tensor]:
    """As musubi-tuner writes them: dots are underscores."""
    keys = {}
    for module, (down, up) in pairs.items():
        name = "lora_unet_" + names[module].replace(".", "_")
        keys |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(alpha)}
    return keys
