"""Checkpoints in every published form, and everything that can be wrong with one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pagedvid.errors import ConfigError
from pagedvid.models.checkpoint import checkpoint_files, load_checkpoint, tensor_shapes


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
    published = {f"model.{name}": tensor for name, tensor in content.items()} | {"optimizer": torch.zeros(1)}
    load_checkpoint(
        module,
        write(tmp_path, "safetensors", published),
        rename=lambda name: name.removeprefix("model.") if name.startswith("model.") else None,
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
def test_weights_that_do_not_fit_are_named(change, message, form, tmp_path: Path):
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
        (lambda folder: folder / "weights.gguf", "is no checkpoint: allowed are .safetensors"),
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
