"""Tensors of a GGUF file, decoded by the library `gguf` (pip install "pagedvid[gguf]"). The only file that imports it.

Quantized tensors (Q8_0, Q4_K, ...) become float32 while they are read, one at a time: they are as large in memory as
those of any other checkpoint, unless they are kept in eight bits (models/common/fp8_linear.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagedvid.errors import ConfigError, listed
from pagedvid.files.tensor_files import TensorFacts
from pagedvid.shown import named

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""Metadata key, before a tensor's name: its shape where GGUF, which knows four axes at most, has another."""


def gguf_facts(file: Path) -> dict[str, TensorFacts]:
    """Shapes by tensor name; the dtype is that of the decoded numbers. Raises ConfigError, also for kinds of numbers
    that the library cannot decode."""
    reader = _reader(file)
    kinds = {tensor.tensor_type for tensor in reader.tensors}
    unknown = {kind for kind in kinds if not _can_decode(kind)}
    if wrong := [f"{it.name} ({it.tensor_type.name})" for it in reader.tensors if it.tensor_type in unknown]:
        raise ConfigError(
            f"{named(file)} holds numbers that the library gguf cannot decode: {listed(wrong)}; give a file in F16, "
            "BF16, Q8_0 or Q4_K"
        )
    return {tensor.name: TensorFacts(_shape(reader, tensor), "float32") for tensor in reader.tensors}


def gguf_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors, float32 on the CPU, in the order of the file. Raises ConfigError."""
    reader = _reader(file)
    for tensor in reader.tensors:
        numbers = _library().dequantize(tensor.data, tensor.tensor_type)
        yield tensor.name, torch.from_numpy(np.array(numbers, np.float32)).reshape(_shape(reader, tensor))


def _reader(file: Path) -> Any:
    try:
        return _library().GGUFReader(file)
    except (ValueError, KeyError, IndexError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{named(file)} cannot be read as GGUF ({error}); download it again") from error


def _library() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ConfigError(
            f"reading GGUF files needs the library gguf ({error}): pip install 'pagedvid[gguf]'"
        ) from error
    return gguf


def _can_decode(kind: Any) -> bool:
    """Whether the library decodes a kind of numbers: one block of zeros shows it."""
    _, block_bytes = _library().GGML_QUANT_SIZES[kind]
    try:
        _library().dequantize(np.zeros(block_bytes, np.uint8), kind)
    except NotImplementedError:
        return False
    return True


def _shape(reader: Any, tensor: Any) -> tuple[int, ...]:
    """As PyTorch has it; GGUF names the innermost axis first."""
    original = reader.get_field(ORIGINAL_SHAPE + tensor.name)
    if original is not None:
        return tuple(int(size) for size in original.contents())
    return tuple(int(size) for size in reversed(tensor.shape))
