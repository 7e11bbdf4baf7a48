"""Checkpoints written as GGUF by the library's own writer, in the form in which ComfyUI's users have them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
from torch import Tensor

MAX_AXES = 4
"""Of a tensor in GGUF; a convolution over time has five, and its shape is in the metadata."""


def write_gguf(
    file: Path, tensors: Mapping[str, Tensor], kinds: Mapping[str, str] | None = None
) -> dict[str, np.ndarray]:
    """Writes the tensors in the kinds of numbers that are named (F32 where none is), and returns, float64, what the
    library makes of every one when it quantizes and decodes it."""
    writer, stored = gguf.GGUFWriter(file, "wan"), {}
    for name, tensor in tensors.items():
        kind = gguf.GGMLQuantizationType[(kinds or {}).get(name, "F32")]
        numbers = tensor.float().numpy()
        if numbers.ndim > MAX_AXES:
            writer.add_array(f"comfy.gguf.orig_shape.{name}", list(numbers.shape))
            numbers = numbers.reshape(len(numbers), -1)
        coded = gguf.quantize(numbers, kind)
        writer.add_tensor(name, coded, raw_dtype=kind)
        stored[name] = gguf.dequantize(coded, kind).reshape(tensor.shape).astype(np.float64)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored
