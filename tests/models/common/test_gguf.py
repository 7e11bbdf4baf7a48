"""GGUF files: every kind of numbers as the library decodes it, shapes of five axes, and what cannot be read."""

from __future__ import annotations

import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pagedvid.errors import ConfigError
from pagedvid.models.common.checkpoint import load_checkpoint, tensor_shapes
from pagedvid.models.common.fp8_linear import use_fp8
from tests.models.common.gguf_files import write_gguf

KINDS = ["F32", "F16", "BF16", "Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0"]


class Small(nn.Module):
    def __init__(self, columns: int = 64) -> None:
        super().__init__()
        self.first = nn.Linear(columns, 6)
        self.conv = nn.Conv3d(4, 8, (1, 2, 2))


def on_meta(columns: int = 64) -> Small:
    with torch.device("meta"):
        return Small(columns)


def tensors(columns: int = 64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(x.shape, generator=draw) for name, x in Small(columns).state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_are_what_the_library_decodes(kind, tmp_path):
    content, module = tensors(), on_meta()
    stored = write_gguf(tmp_path / "w.gguf", content, {"first.weight": kind, "conv.weight": "F16"})
    load_checkpoint(module, tmp_path / "w.gguf")
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == torch.float32 and np.array_equal(tensor.double().numpy(), stored[name]), name
    error = float((module.first.weight - content["first.weight"]).norm() / content["first.weight"].norm())
    assert error < {"F32": 1e-9, "F16": 1e-3, "BF16": 1e-2, "Q8_0": 1e-2}.get(kind, 0.15)
    assert tensor_shapes(tmp_path / "w.gguf") == {name: tuple(tensor.shape) for name, tensor in content.items()}


def test_a_convolution_may_have_all_five_axes(tmp_path):
    """Some programs write them although GGUF's own tools know four."""
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "wan")
    content = tensors()
    for name, tensor in content.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    module = on_meta()
    load_checkpoint(module, tmp_path / "w.gguf")
    assert torch.equal(module.conv.weight, content["conv.weight"])


def q4_k_block(draw: np.random.Generator) -> tuple[bytes, np.ndarray]:
    """256 weights as llama.cpp stores them in Q4_K, and their values: 8 groups of 32 codes of 4 bits, each group with a
    scale and a minimum of 6 bits, all times d and dmin."""
    d, dmin = np.float16(0.01), np.float16(0.02)
    scales, minima = draw.integers(0, 64, 8), draw.integers(0, 64, 8)
    codes = draw.integers(0, 16, (8, 32))
    packed = np.zeros(12, np.uint8)
    for group in range(4):
        packed[group] = scales[group] | (scales[group + 4] >> 4) << 6
        packed[group + 4] = minima[group] | (minima[group + 4] >> 4) << 6
        packed[group + 8] = (scales[group + 4] & 15) | (minima[group + 4] & 15) << 4
    nibbles = np.concatenate([codes[2 * pair] | codes[2 * pair + 1] << 4 for pair in range(4)]).astype(np.uint8)
    values = float(d) * scales[:, None] * codes - float(dmin) * minima[:, None]
    return d.tobytes() + dmin.tobytes() + packed.tobytes() + nibbles.tobytes(), values.flatten()


def test_q4_k_is_decoded(tmp_path):
    draw = np.random.default_rng(0)
    blocks = [q4_k_block(draw) for _ in range(6 * 2)]
    rows = np.frombuffer(b"".join(raw for raw, _ in blocks), np.uint8).reshape(6, -1)
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "wan")
    writer.add_tensor("first.weight", rows, raw_dtype=gguf.GGMLQuantizationType.Q4_K)
    for name, tensor in tensors(512).items():
        if name != "first.weight":
            writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    module = on_meta(512)
    load_checkpoint(module, tmp_path / "w.gguf")
    expected = np.concatenate([values for _, values in blocks]).reshape(6, 512)
    np.testing.assert_allclose(module.first.weight.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_layers_in_eight_bits_take_them(tmp_path):
    module = on_meta()
    use_fp8(module)
    stored = write_gguf(tmp_path / "w.gguf", tensors(), {"first.weight": "Q8_0"})
    load_checkpoint(module, tmp_path / "w.gguf")
    decoded = (module.first.weight.double() * module.first.row_scales.double()).numpy()
    assert np.abs(decoded - stored["first.weight"]).max() <= np.abs(stored["first.weight"]).max() / 16


def test_kinds_of_numbers_that_the_library_cannot_decode_are_named(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "w.gguf", "wan")
    for name, tensor in tensors().items():
        writer.add_tensor(name, tensor.numpy().astype(np.int8) if name == "first.bias" else tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    message = r"w.gguf holds numbers that the library gguf cannot decode: first.bias \(I8\); give a file in F16, BF16"
    for call in (tensor_shapes, lambda path: load_checkpoint(on_meta(), path)):
        with pytest.raises(ConfigError, match=message):
            call(tmp_path / "w.gguf")


@pytest.mark.parametrize("cut", [2, 10, 40, 700, -300])
def test_damaged_files_are_named(cut, tmp_path: Path):
    write_gguf(tmp_path / "w.gguf", tensors())
    content = (tmp_path / "w.gguf").read_bytes()
    (tmp_path / "w.gguf").write_bytes(content[:cut])
    with pytest.raises(ConfigError, match=r"w.gguf cannot be read as GGUF \(.*\); download it again"):
        load_checkpoint(on_meta(), tmp_path / "w.gguf")


def test_other_bytes_are_no_gguf(tmp_path: Path):
    (tmp_path / "w.gguf").write_bytes(b"not what the name says" * 10)
    with pytest.raises(ConfigError, match=r"w.gguf cannot be read as GGUF"):
        load_checkpoint(on_meta(), tmp_path / "w.gguf")


def test_without_the_library_it_is_named(tmp_path, monkeypatch):
    write_gguf(tmp_path / "w.gguf", tensors())
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(ConfigError, match=r"GGUF files needs the library gguf \(.*\): pip install 'pagedvid\[gguf\]'"):
        tensor_shapes(tmp_path / "w.gguf")
