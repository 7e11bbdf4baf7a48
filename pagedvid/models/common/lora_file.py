"""One file of a LoRA: which tensors of a network it changes, and by how much.

    PEFT, diffusers    transformer.blocks.0.attn1.to_q.lora_A.weight and .lora_B.weight, behind base_model.model. or not
    ComfyUI            diffusion_model.blocks.0.self_attn.q.lora_down.weight, .lora_up.weight and .alpha
                       .diff, .diff_b, .diff_m: differences of whole tensors, which belong to weight, bias, modulation
    musubi-tuner       lora_unet_blocks_0_self_attn_q.lora_down.weight, .lora_up.weight and .alpha

    weight + factor * lora_B @ lora_A        factor = alpha / rank; alpha is one of its tensors, or in
                                             adapter_config.json, or in the file's metadata, or else the rank

Axes: O outputs, I inputs (of a convolution: I and the kernel's), R rank.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from pagedvid.errors import ConfigError, listed
from pagedvid.files.tensor_files import refuse_non_finite, refuse_odd_dtype
from pagedvid.models.common.checkpoint_names import plain_name
from pagedvid.models.common.lora_settings import DefaultFactor
from pagedvid.models.common.shard import read_shard
from pagedvid.shown import named

_PART = re.compile(
    r"(?P<module>.+)\.(?:(?P<factor>lora_A|lora_B|lora_down|lora_up)(?:\.(?!weight$|bias$)[^.]+)?\.(?P<leaf>weight|bias)"
    r"|(?P<other>alpha|diff|diff_b|diff_m))"
)
"""A module and what a key has of it; between lora_A and weight PEFT may write the adapter's name."""
_KINDS = {
    "lora_A.weight": "down",
    "lora_down.weight": "down",
    "lora_B.weight": "up",
    "lora_up.weight": "up",
    "lora_B.bias": "bias",
    "lora_up.bias": "bias",
}
_WHOLE = {"bias": "bias", "diff": "weight", "diff_b": "bias", "diff_m": "modulation"}
"""Kinds that change a whole tensor, and its name in the module."""
_AROUND = ("base_model.model.", "transformer.", "unet.")
"""What PEFT and diffusers put before a module, besides the wrappers of checkpoint_names.py."""
_MUSUBI = re.compile(r"lora_unet_blocks_(\d+)_(self_attn|cross_attn|ffn)_(\w+)")


@dataclass(frozen=True)
class Part:
    """One tensor of the file."""

    key: str
    tensor: Tensor

    def __str__(self) -> str:
        return f"{self.key} {list(self.tensor.shape)}"


class Change(Protocol):
    """What is added to one tensor of a network."""

    @property
    def parts(self) -> tuple[Part, ...]:
        """What it consists of."""
        ...

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Of the tensor that it changes; None: its parts do not fit each other."""
        ...

    def value(self) -> Tensor:
        """What is added, float32, of that shape."""
        ...


@dataclass(frozen=True)
class LowRank:
    """factor * up [O, R] @ down [R, I]."""

    down: Part
    up: Part
    factor: float

    @property
    def parts(self) -> tuple[Part, ...]:
        """Both."""
        return self.down, self.up

    @property
    def shape(self) -> tuple[int, ...] | None:
        """[O, I]; of a convolution [O, I, ...]."""
        down, up = self.down.tensor.shape, self.up.tensor.shape
        if min(len(down), len(up)) < 2 or down[0] != up[1] or math.prod(up[2:]) != 1:
            return None
        return up[0], *down[1:]

    def value(self) -> Tensor:
        """The product, computed in float32."""
        product_OI = self.up.tensor.float().flatten(1) @ self.down.tensor.float().flatten(1)
        return product_OI.mul_(self.factor).view(self.up.tensor.shape[0], *self.down.tensor.shape[1:])


@dataclass(frozen=True)
class Whole:
    """factor * tensor."""

    part: Part
    factor: float = 1.0

    @property
    def parts(self) -> tuple[Part, ...]:
        """The only one."""
        return (self.part,)

    @property
    def shape(self) -> tuple[int, ...] | None:
        """That of the tensor."""
        return tuple(self.part.tensor.shape)

    def value(self) -> Tensor:
        """The tensor, as many times."""
        return self.part.tensor.float() * self.factor


def read_changes(file: Path) -> list[tuple[str, Change]]:
    """All changes of a file by the plain names of what they change, "blocks.0.self_attn.q.weight".

    Raises ConfigError, which names keys of unknown form, pairs of which one is missing, and wrong numbers.
    """
    modules: dict[str, dict[str, Part]] = {}
    unknown = []
    for key, tensor in read_shard(file):
        module, kind = _read_key(key)
        if kind is None:
            unknown.append(key)
            continue
        if kind != "alpha":
            refuse_odd_dtype(tensor, f"{named(file)}: {key}")
        refuse_non_finite(tensor, key, file)
        parts = modules.setdefault(module, {})
        if kind in parts:
            raise ConfigError(f"{named(file)} holds {parts[kind].key} and {key}, which mean the same; remove one")
        parts[kind] = Part(key, tensor)
    if unknown:
        raise ConfigError(
            f"{named(file)} holds keys that are not known of LoRAs: {listed(unknown)}; known are lora_A and lora_B, "
            "lora_down and lora_up, alpha, diff, diff_b, diff_m, each behind the name of a module"
        )
    default_factor = DefaultFactor.of(file)
    return [change for module, parts in modules.items() for change in _changes(file, module, parts, default_factor)]


def _read_key(key: str) -> tuple[str, str | None]:
    """The plain name of a module, and the kind of a part of it; None: no key of a LoRA."""
    match = _PART.fullmatch(key)
    if match is None:
        return key, None
    module = match["module"]
    for prefix in _AROUND:
        module = module.removeprefix(prefix)
    if musubi := _MUSUBI.fullmatch(module):
        module = "blocks.{}.{}.{}".format(*musubi.groups())
    module = plain_name(f"{module}.weight").removesuffix(".weight")
    return module, match["other"] or _KINDS.get(f"{match['factor']}.{match['leaf']}")


def _changes(file: Path, module: str, parts: Mapping[str, Part], default: DefaultFactor) -> list[tuple[str, Change]]:
    found: list[tuple[str, Change]] = []
    factor = 1.0
    pair = [parts[kind] for kind in ("down", "up") if kind in parts]
    if len(pair) == 1 or (not pair and "alpha" in parts):
        only = pair[0].key if pair else parts["alpha"].key
        raise ConfigError(f"{named(file)}: {only} is there without the other half of its pair; download it again")
    if pair:
        down, up = pair
        factor = _factor(file, down, parts.get("alpha"), default)
        found.append((f"{module}.weight", LowRank(down, up, factor)))
    for kind, leaf in _WHOLE.items():
        if kind in parts:
            found.append((f"{module}.{leaf}", Whole(parts[kind], factor if kind == "bias" else 1.0)))
    return found


def _factor(file: Path, down: Part, alpha: Part | None, default: DefaultFactor) -> float:
    """alpha / rank of a pair. Raises ConfigError."""
    rank = down.tensor.shape[0] if down.tensor.ndim else 0
    if rank == 0 or (alpha is not None and alpha.tensor.numel() != 1):
        wrong = down if rank == 0 else alpha
        raise ConfigError(f"{named(file)}: {wrong} has no rank, or is not one number; download it again")
    return default(rank) if alpha is None else float(alpha.tensor) / rank
