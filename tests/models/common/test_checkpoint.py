"""Checkpoints in every published form, and everything that can be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pagedvid.errors import ConfigError
from pagedvid.models.common import checkpoint
from pagedvid.models.common.checkpoint import checkpoint_files, load_checkpoint, tensor_shapes


class Small(nn.Module):
    """Two float32 matrices of which one is wanted in bf16, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.second = nn.Linear(2, 2, bias=False, dtype=torch.bfloat16)
        self.register_buffer("table", torch.zeros(4))


def small_on_meta() -> Small:
    with torch.device("meta"):
        return Small()


def tensors() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(tensor.shape, generator=draw) for name, tensor in Small().state_dict().items()}


def write_shards(folder: Path, content: dict[str, Tensor]) -> Path:
    weight_map = {}
    for number, name in enumerate(sorted(content)):
        file = f"model-{number}.safetensors"
        save_file({name: content[name]}, folder / file)
        weight_map[name] = file
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    return index


def write(folder: Path, form: str, content: dict[str, Tensor]) -> Path:
    """The path to give to the loader."""
    if form in ("folder of shards", "index"):
        index = write_shards(folder, content)
        return index if form == "index" else folder
    if form in ("safetensors", "folder"):
        save_file(content, folder / "weights.safetensors")
        return folder if form == "folder" else folder / "weights.safetensors"
    wrapped = {"state_dict": content, "step": 3} if form == "wrapped pt" else content
    torch.save(wrapped, folder / "weights.pt")
    return folder / "weights.pt"


FORMS = ["folder of shards", "index", "safetensors", "folder", "pt", "wrapped pt"]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_fills_the_module_in_its_dtypes(form: str, tmp_path: Path):
    content, module = tensors(), small_on_meta()
    path = write(tmp_path, form, content)
    load_checkpoint(module, path)
    for name, tensor in module.state_dict().items():
        assert tensor.device.type == "cpu" and not tensor.requires_grad
        assert tensor.dtype == (torch.bfloat16 if name == "second.weight" else torch.float32)
        assert torch.equal(tensor, content[name].to(tensor.dtype))
    assert all(not parameter.requires_grad for parameter in module.parameters())
    assert tensor_shapes(path) == {name: tuple(tensor.shape) for name, tensor in content.items()}


def test_names_and_tensors_may_be_changed_on_the_way(tmp_path: Path):
    content, module = tensors(), small_on_meta()
    published = {f"net.{name}": tensor for name, tensor in content.items()} | {"optimizer": torch.zeros(1)}
    load_checkpoint(
        module,
        write(tmp_path, "safetensors", published),
        rename=lambda name: name.removeprefix("net.") if name.startswith("net.") else None,
        convert=lambda name, tensor: tensor.flip(0) if name == "table" else tensor,
    )
    assert torch.equal(module.table, content["table"].flip(0))
    assert torch.equal(module.first.weight, content["first.weight"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("table"), "missing keys table; surplus keys none"),
        (lambda c: c.update(extra=torch.zeros(1)), "missing keys none; surplus keys extra"),
        (lambda c: c.update(table=torch.zeros(5)), r"weights of another model: table \[5\] instead of \[4\]"),
    ],
    ids=["missing", "surplus", "shape"],
)
@pytest.mark.parametrize("form", ["folder of shards", "pt"])
def test_weights_that_do_not_fit_are_named_before_any_is_read(change, message, form, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(checkpoint, "read_shard", None)
    content = tensors()
    change(content)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(small_on_meta(), write(tmp_path, form, content))


def test_many_missing_keys_are_counted(tmp_path: Path):
    with torch.device("meta"):
        module = nn.Sequential(*(nn.Linear(1, 1) for _ in range(8)))
    with pytest.raises(ConfigError, match=r"missing keys 0.bias, .* and 8 more; surplus keys none"):
        load_checkpoint(module, write(tmp_path, "safetensors", {}))


def break_index(folder: Path) -> Path:
    index = write_shards(folder, tensors())
    index.write_text("{}")
    return index


def lose_a_shard(folder: Path) -> Path:
    index = write_shards(folder, tensors())
    (folder / "model-1.safetensors").unlink()
    return index


def cut(folder: Path, form: str, name: str) -> Path:
    write(folder, form, tensors())
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    return folder / name


class Code:
    def __reduce__(self):
        return (print, ("run from a checkpoint",))


def with_code(folder: Path) -> Path:
    torch.save({"a": Code()}, folder / "weights.pt")
    return folder / "weights.pt"


def no_tensors(folder: Path) -> Path:
    torch.save({"a": 3}, folder / "weights.pt")
    return folder / "weights.pt"


def two_files(folder: Path) -> Path:
    for name in "ab":
        save_file(tensors(), folder / f"{name}.safetensors")
    return folder


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: folder / "absent.safetensors", "absent.safetensors is missing"),
        (lambda folder: folder / "weights.onnx", "is no checkpoint: allowed are .safetensors"),
        (lambda folder: folder, "holds no single checkpoint: .* found none"),
        (two_files, r"found a.safetensors, b.safetensors. Name the file itself"),
        (break_index, "is not an index of shards"),
        (lose_a_shard, "names shards that are missing: model-1.safetensors"),
        (lambda folder: cut(folder, "safetensors", "weights.safetensors"), "weights.safetensors cannot be read"),
        (lambda folder: cut(folder, "pt", "weights.pt"), "weights.pt cannot be read as tensors only"),
        (with_code, "cannot be read as tensors only"),
        (no_tensors, "is not a table of tensors"),
    ],
)
def test_files_that_are_no_checkpoint_are_refused(spoil, message, tmp_path: Path, capsys):
    path = spoil(tmp_path)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(small_on_meta(), path)
    with pytest.raises(ConfigError, match=message):
        tensor_shapes(path)
    assert "run from" not in capsys.readouterr().out


def test_shards_come_in_order_and_once(tmp_path: Path):
    index = write_shards(tmp_path, tensors())
    files = checkpoint_files(index)
    assert [file.name for file in files] == [f"model-{number}.safetensors" for number in range(4)]


# ---------------------------------------------------------------------- tensors that are no weights


@pytest.mark.parametrize("form", ["safetensors", "pt"])
@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64]
)
def test_numbers_that_are_no_floating_point_weights_are_refused(dtype, form, tmp_path: Path):
    content = tensors() | {"second.weight": torch.ones(2, 2).to(dtype)}
    if form == "safetensors" and dtype.is_complex:
        pytest.skip("safetensors writes no complex numbers here")
    path = write(tmp_path, form, content)
    name = str(dtype).removeprefix("torch.")
    for call in (tensor_shapes, lambda path: load_checkpoint(small_on_meta(), path)):
        with pytest.raises(ConfigError, match=rf"not weights by themselves: second.weight \({name}\); allowed are"):
            call(path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
@pytest.mark.parametrize("form", ["safetensors", "pt"])
def test_eight_bit_floats_are_weights_unless_there_are_scales_of_unknown_use(form, dtype, tmp_path: Path):
    content = tensors() | {"second.weight": torch.tensor([[0.5, -2.0], [1.5, 0.0]]).to(dtype)}
    module = small_on_meta()
    load_checkpoint(module, write(tmp_path, form, content))
    assert module.second.weight.tolist() == [[0.5, -2.0], [1.5, 0.0]]
    for scale in ("second.weight_scale_inv", "second.scale_input", "scaled_fp8", "second.SCB"):
        path = write(tmp_path, form, content | {scale: torch.ones(1)})
        with pytest.raises(ConfigError, match=r"not weights by themselves: second.weight \(float8_e"):
            load_checkpoint(small_on_meta(), path)
    path = write(tmp_path, form, content)
    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}}')
    with pytest.raises(ConfigError, match=r"not weights by themselves: second.weight \(float8_e"):
        load_checkpoint(small_on_meta(), path)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e39])
def test_weights_that_are_not_finite_in_the_module_s_dtype_are_named(value, tmp_path: Path):
    content = tensors()
    content["first.weight"] = content["first.weight"].double()
    content["first.weight"][1, 2] = value
    path = write(tmp_path, "safetensors", content)
    with pytest.raises(ConfigError, match=r"first.weight holds NaN or infinity, or numbers beyond float32"):
        load_checkpoint(small_on_meta(), path)


def test_finite_weights_whose_sum_is_not_are_taken(tmp_path: Path):
    content = tensors() | {"table": torch.full((4,), 3e38)}
    module = small_on_meta()
    load_checkpoint(module, write(tmp_path, "safetensors", content))
    assert module.table.tolist() == content["table"].tolist()


def test_a_checkpoint_may_mix_floating_point_dtypes(tmp_path: Path):
    content = {
        name: x.to(dtype)
        for (name, x), dtype in zip(
            tensors().items(), (torch.float64, torch.float16, torch.bfloat16, torch.float32), strict=True
        )
    }
    module = small_on_meta()
    load_checkpoint(module, write(tmp_path, "folder of shards", content))
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, content[name].to(tensor.dtype))


@pytest.mark.parametrize("strange", ["meta", "sparse", "quantized"])
def test_tensors_without_values_of_their_own_are_refused(strange, tmp_path: Path):
    matrix = torch.ones(2, 2)
    made = {
        "meta": lambda: matrix.to("meta"),
        "sparse": matrix.to_sparse,
        "quantized": lambda: torch.quantize_per_tensor(matrix, 0.1, 0, torch.qint8),
    }[strange]()
    torch.save(tensors() | {"second.weight": made}, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=r"second.weight"):
        load_checkpoint(small_on_meta(), tmp_path / "w.pt")


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_older_format_of_pt_files_is_read(wrapped, tmp_path: Path):
    content, file, module = tensors(), tmp_path / "w.pt", small_on_meta()
    torch.save({"model": content} if wrapped else content, file, _use_new_zipfile_serialization=False)
    load_checkpoint(module, file)
    assert torch.equal(module.first.weight, content["first.weight"])
    torch.save({"a": Code()}, file, _use_new_zipfile_serialization=False)
    with pytest.raises(ConfigError, match="cannot be read as tensors only"):
        load_checkpoint(small_on_meta(), file)


def test_tables_that_hold_themselves_are_refused(tmp_path: Path):
    content: dict = {}
    content["model"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="is not a table of tensors"):
        load_checkpoint(small_on_meta(), tmp_path / "w.pt")


# ---------------------------------------------------------------------- folders and indices


def test_what_pagedvid_writes_may_be_next_to_the_weights(tmp_path: Path):
    path = write(tmp_path, "folder", tensors())
    x = torch.zeros(1)
    save_file({"keys.mean": x}, tmp_path / "klt_tables.safetensors")
    save_file({"keys.mean": x}, tmp_path / "mine.safetensors", {"format": "pagedvid klt tables 1"})
    save_file({"latents": x}, tmp_path / "000-a-cat.safetensors", {"frames_per_second": "4"})
    save_file({"prompt_embeds": x, "negative_prompt_embeds": x.clone()}, tmp_path / "cat.safetensors")
    (tmp_path / "._weights.safetensors").write_bytes(b"what macOS leaves behind")
    assert [file.name for file in checkpoint_files(path)] == ["weights.safetensors"]


def test_a_folder_without_weights_says_what_else_is_there(tmp_path: Path):
    save_file({"t": torch.zeros(1)}, tmp_path / "klt_tables.safetensors")
    (tmp_path / "model.onnx").write_bytes(b"ONNX")
    with pytest.raises(ConfigError, match=r"no single checkpoint: .*found klt_tables.safetensors, model.onnx"):
        checkpoint_files(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../w.safetensors"}, r"names \.\./w.safetensors; a shard is a file next to its index"),
        ({"a": "/etc/passwd"}, r"names /etc/passwd; a shard is a file next to its index"),
        ({"a": "sub/w.safetensors"}, r"names sub/w.safetensors; a shard"),
        ({"a": "w.txt"}, r"names w.txt; a shard is .* ends in .safetensors"),
        ({"a": ""}, r"a shard is a file next to its index"),
        ({"a": 3, "b": None}, "is not an index of shards"),
        ({}, "is not an index of shards"),
        ([], "is not an index of shards"),
    ],
)
def test_an_index_that_leads_elsewhere_is_refused(weight_map, message, tmp_path: Path):
    folder = tmp_path / "weights"
    folder.mkdir()
    save_file(tensors(), tmp_path / "w.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ConfigError, match=message):
        checkpoint_files(folder)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path):
    index = write_shards(tmp_path, tensors())
    save_file({"table": torch.ones(4), "first.bias": torch.ones(2)}, tmp_path / "model-0.safetensors")
    with pytest.raises(ConfigError, match=r"holds (table|first.bias) twice; only one of them can be"):
        load_checkpoint(small_on_meta(), index)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (LFS, "is a Git LFS pointer, not the file itself; run `git lfs pull`"),
        (b"<!DOCTYPE html><html>", "is a web page, not the file itself"),
        (b"", "is empty; download it again"),
    ],
    ids=["lfs", "html", "empty"],
)
@pytest.mark.parametrize("form", ["folder of shards", "index", "safetensors", "folder", "pt"])
def test_what_stands_in_a_file_s_place_is_named(form, content, message, tmp_path: Path):
    path = write(tmp_path, form, tensors())
    for file in tmp_path.glob("*"):
        if file.suffix in (".safetensors", ".pt") or form == "index":
            file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_checkpoint(small_on_meta(), path)
