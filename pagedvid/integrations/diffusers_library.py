"""Access to the library `diffusers`, with a clear error if it cannot be used. The only file that imports it.

`diffusers` is optional (pip install "pagedvid[vae]"). pagedvid uses its model classes, not its pipelines. It never lets
it download anything: a path that does not exist is an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from pagedvid.errors import ConfigError
from pagedvid.integrations.weights_folder import likely_reason
from pagedvid.shown import named

OLDEST_VERSION = (0, 36)
"""The first version with all classes and arguments that are used here."""
NEXT_MAJOR = (1, 0)
"""Not tested yet."""


def import_diffusers(purpose: str) -> Any:
    """The module. Raises ConfigError, beginning with `purpose` ("decoding latents"), if it cannot be used."""
    try:
        import diffusers
    except ImportError as error:
        raise ConfigError(f"{purpose} needs the library diffusers ({error}): pip install 'pagedvid[vae]'") from error
    version = tuple(int(number) for number in re.findall(r"\d+", diffusers.__version__)[:2])
    if not OLDEST_VERSION <= version < NEXT_MAJOR:
        raise ConfigError(
            f"{purpose} needs diffusers {_written(OLDEST_VERSION)} or newer and below {_written(NEXT_MAJOR)}; "
            f"installed is {diffusers.__version__}: pip install 'pagedvid[vae]'"
        )
    return diffusers


def load_pretrained(class_name: str, folder: Path, purpose: str, dtype: torch.dtype) -> Any:
    """The model in a folder in the layout of diffusers (config.json and weights), on the CPU, ready for inference.

    Its weights are in `dtype`, except those that the class keeps in float32. Raises ConfigError if the library or files
    are missing, or if the weights do not fit the configuration.
    """
    library = import_diffusers(purpose)
    try:
        model, found = getattr(library, class_name).from_pretrained(
            folder, torch_dtype=dtype, local_files_only=True, low_cpu_mem_usage=False, output_loading_info=True
        )
    except (OSError, ValueError, TypeError, RuntimeError, RecursionError, SafetensorError) as error:
        raise ConfigError(
            f"the {class_name} in {named(folder)} cannot be loaded: {likely_reason((folder,), error)}"
        ) from error
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])
        more = f" and {len(missing) - 8} more" if len(missing) > 8 else ""
        raise ConfigError(f"the weights in {folder} lack {', '.join(missing[:8])}{more}")
    return model.eval().requires_grad_(False)


def empty_transformer(class_name: str, config: Mapping[str, Any], purpose: str, dtype: torch.dtype) -> Any:
    """A Wan-like transformer with parameters on the "meta" device, which take no memory until a checkpoint fills them.

    They are of `dtype`, except those that the class keeps in float32. The rotary tables, which no checkpoint holds, are
    real and on the CPU. Raises ConfigError if the library is missing or does not know these arguments.
    """
    kind = getattr(import_diffusers(purpose), class_name)
    try:
        with torch.device("meta"):
            model = kind(**config)
    except (TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
        raise ConfigError(f"diffusers' {class_name} cannot be built from the configuration: {error}") from error
    model.rope = type(model.rope)(
        model.config.attention_head_dim, model.config.patch_size, model.config.rope_max_seq_len
    )
    kept = tuple(kind._keep_in_fp32_modules or ())
    for name, parameter in model.named_parameters():
        if not any(part in name.split(".") for part in kept):
            parameter.data = parameter.data.to(dtype)
    return model.eval().requires_grad_(False)


def _written(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
