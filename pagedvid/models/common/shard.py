"""One file of a checkpoint: what it holds, and its tensors one by one.

`.pt` files are read with `weights_only=True`: they can hold tensors, but no code. GGUF files are read by
integrations/gguf_file.py.
"""

from __future__ import annotations

import warnings
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from pagedvid.errors import ConfigError, listed
from pagedvid.files.paths import readable_file
from pagedvid.files.tensor_files import TensorFacts, safetensors_facts
from pagedvid.integrations.gguf_file import gguf_facts, gguf_tensors
from pagedvid.models.common.checkpoint_files import GGUF_SUFFIX
from pagedvid.models.common.checkpoint_names import TABLES
from pagedvid.shown import named

OUTER_TABLES = ("state_dict", "model", "module", "generator_lora")
"""Keys under which a .pt file may keep its tensors, in addition to `TABLES`; the last holds a LoRA of LongLive."""
MAX_NESTED = 8
"""Deepest nesting of tables."""
_ZIP = b"PK"
"""First bytes of a .pt file since PyTorch 1.6; older files cannot be mapped into memory."""


def read_shard(file: Path, prefer_ema: bool = True, only: Container[str] | None = None) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of one file, on the CPU, in the dtype of the file (of GGUF, float32). Raises ConfigError.

    `prefer_ema`: of a .pt file with averaged and last weights, take the averaged ones. `only`: names of tensors to
    read; None: all of them.
    """
    if readable_file(file).suffix == GGUF_SUFFIX:
        yield from ((name, tensor) for name, tensor in gguf_tensors(file) if only is None or name in only)
        return
    if file.suffix != ".safetensors":
        table = _read_pickle(file, prefer_ema)
        yield from ((name, tensor) for name, tensor in table.items() if only is None or name in only)
        return
    try:
        with safe_open(file, framework="pt") as shard:
            for name in shard.keys():  # noqa: SIM118 - it is no mapping
                if only is None or name in only:
                    yield name, shard.get_tensor(name)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{named(file)} cannot be read ({error}); download it again") from error


def shard_facts(file: Path, prefer_ema: bool = True) -> dict[str, TensorFacts]:
    """What `read_shard` would give, by name. Raises ConfigError."""
    if readable_file(file).suffix == GGUF_SUFFIX:
        return gguf_facts(file)
    if file.suffix != ".safetensors":
        return {
            name: TensorFacts(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
            for name, tensor in _read_pickle(file, prefer_ema).items()
        }
    return safetensors_facts(file)


def _read_pickle(file: Path, prefer_ema: bool) -> dict[str, Tensor]:
    with file.open("rb") as start:
        is_zip = start.read(len(_ZIP)) == _ZIP
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=is_zip)
    except Exception as error:  # damaged bytes make the reader fail in many ways, and none of them is a checkpoint
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{named(file)} cannot be read as tensors only ({reason}); download it again, or use a checkpoint without "
            "code"
        ) from error
    table = _table_of_tensors(content, file, prefer_ema)
    strange = [name for name, tensor in table.items() if tensor.is_meta or tensor.layout != torch.strided]
    if strange:
        raise ConfigError(f"{named(file)} holds tensors without values, or sparse ones: {listed(strange)}; export them")
    return table


def _table_of_tensors(content: Any, file: Path, prefer_ema: bool) -> dict[str, Tensor]:
    """The table in the content of a .pt file that holds the network."""
    for _ in range(MAX_NESTED):
        keys = (*TABLES[prefer_ema], *OUTER_TABLES)
        tables = [key for key in keys if isinstance(content, dict) and isinstance(content.get(key), dict)]
        filled = [key for key in tables if content[key]]
        if not filled:
            break
        if tables[0] != filled[0]:
            message = f"{named(file)}: the table {tables[0]!r} is empty; {filled[0]!r} is taken in its place"
            warnings.warn(message, stacklevel=2)
        content = content[filled[0]]
    is_table = isinstance(content, dict) and all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in content.items()
    )
    if not is_table:
        found = f" with the keys {listed(sorted(map(str, content)))}" if isinstance(content, dict) else ""
        raise ConfigError(
            f"{named(file)} holds a {type(content).__name__}{found} that is not a table of tensors; export its weights"
        )
    return dict(content)
