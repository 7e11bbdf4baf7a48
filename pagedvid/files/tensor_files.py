"""Files of tensors, and which of their numbers are weights: those that can be used as they are, in any float format.

Codes of quantized weights cannot: their scales are in other tensors, in a configuration file, or unknown. If they were
cast to floats, they would load without an error and the model would produce garbage.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from pagedvid.errors import ConfigError, listed
from pagedvid.files.paths import is_file, read_json, readable_file
from pagedvid.shown import named

PLAIN_DTYPES = ("float64", "float32", "float16", "bfloat16")
EIGHT_BIT_DTYPES = ("float8_e4m3fn", "float8_e5m2")
"""These are weights too, unless there are scales."""
SCALES = frozenset(
    {
        "scale_weight", "weight_scale", "weight_scale_inv", "scale_input", "input_scale", "scaled_fp8", "comfy_quant",
        "qscale", "scales", "SCB", "absmax", "quant_map",
    }
)  # fmt: skip
"""Last segments of the names of tensors that come with quantized weights."""
_DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2", "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8",
    "BOOL": "bool",
}  # fmt: skip
"""PyTorch's names for the dtypes of safetensors."""


@dataclass(frozen=True)
class TensorFacts:
    """What is known about a tensor without reading it."""

    shape: tuple[int, ...]
    dtype: str
    """PyTorch's name without "torch."."""


def safetensors_facts(file: Path) -> dict[str, TensorFacts]:
    """Shapes and dtypes from the header of a .safetensors file, by tensor name. Raises ConfigError."""
    facts: dict[str, TensorFacts] = {}
    try:
        with safe_open(readable_file(file), framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 - it is not a mapping
                part = content.get_slice(name)
                facts[name] = TensorFacts(tuple(part.get_shape()), _DTYPES.get(part.get_dtype(), part.get_dtype()))
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{named(file)} cannot be read ({error}); download it again") from error
    return facts


def read_tensors(file: Path, what: str) -> dict[str, Tensor]:
    """All tensors of a .safetensors file that belongs to a request. Raises ConfigError, which begins with `what`."""
    advice = "give a .safetensors file"
    try:
        return load_file(readable_file(file, advice))
    except ConfigError as error:
        raise ConfigError(f"{what} cannot be read: {error}") from error
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{what} {named(file)} cannot be read ({error}); {advice}") from error


def refuse_codes(path: Path, dtypes: Mapping[str, str], folder: Path) -> None:
    """Raises ConfigError when, by their names and dtypes, tensors of a checkpoint are codes and not weights.

    `dtypes`: by tensor name. `folder`: its config.json, if there is one, may describe a quantization.
    """
    has_scales = any(name.rpartition(".")[2] in SCALES for name in dtypes) or says_quantized(folder)
    allowed = PLAIN_DTYPES if has_scales else PLAIN_DTYPES + EIGHT_BIT_DTYPES
    codes = [f"{name} ({dtype})" for name, dtype in dtypes.items() if dtype not in allowed]
    if codes:
        raise ConfigError(
            f"{named(path)} holds numbers that are not weights by themselves: {listed(codes)}; allowed are "
            f"{', '.join(PLAIN_DTYPES)}, and float8 without scales. Give the checkpoint from before its quantization"
        )


def refuse_odd_dtype(tensor: Tensor, name: str) -> None:
    """Raises ConfigError for a tensor of a request that does not have a plain floating-point dtype."""
    dtype = str(tensor.dtype).removeprefix("torch.")
    if dtype not in PLAIN_DTYPES:
        raise ConfigError(f"{name} holds {dtype}; allowed are {', '.join(PLAIN_DTYPES)}: write it as one of them")


def says_quantized(folder: Path) -> bool:
    """Whether the config.json of a folder, if there is one, describes a quantization. Raises ConfigError."""
    file = folder / "config.json"
    content = read_json(file) if is_file(file) else None
    return isinstance(content, dict) and "quantization_config" in content


def refuse_non_finite(tensor: Tensor, name: str, place: Path) -> None:
    """Raises ConfigError for weights with NaN or infinity. A sum, which needs no memory, finds nearly all of them."""
    if tensor.is_meta:  # it has no values
        return
    if not bool(torch.isfinite(tensor.sum(dtype=torch.float32))) and not bool(torch.isfinite(tensor).all()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise ConfigError(f"{named(place)}: {name} holds NaN or infinity, or numbers beyond {dtype}; download it again")
