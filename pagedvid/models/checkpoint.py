"""Published weights into a module, one shard at a time: safetensors with an index, a single safetensors file, or .pt.

    network = build_on_meta()                        # parameters have shapes and dtypes, but no memory
    load_checkpoint(network, path, device, rename)   # every parameter gets its tensor, its dtype, its device

At no time is more than one shard held besides the module. `.pt` files are read with `weights_only=True`: they can hold
tensors, but no code.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pagedvid.errors import ConfigError

PICKLE_SUFFIXES = (".pt", ".pth", ".bin")
WRAPPERS = ("state_dict", "model", "module")
"""Keys under which a .pt file may keep its tensors, besides those that a model names itself (`sections`)."""
MAX_NAMED = 8
"""Keys that an error spells out; the rest are counted."""


def checkpoint_files(path: Path) -> tuple[Path, ...]:
    """The files of a checkpoint. `path` is one of them, an index, or a folder with one checkpoint. Raises ConfigError.

    In a folder an index wins over single files.
    """
    if path.is_dir():
        indices = sorted(path.glob("*.index.json"))
        files = [file for suffix in (".safetensors", *PICKLE_SUFFIXES) for file in sorted(path.glob(f"*{suffix}"))]
        if len(indices) == 1:
            return _indexed_files(indices[0])
        if len(indices) > 1 or len(files) != 1:
            found = ", ".join(file.name for file in indices or files) or "none"
            raise ConfigError(
                f"{path} holds no single checkpoint: expected one *.index.json with its shards, or one file that ends "
                f"in .safetensors, {', '.join(PICKLE_SUFFIXES)}; found {found}. Name the file itself."
            )
        return (files[0],)
    if path.name.endswith(".index.json"):
        return _indexed_files(path)
    if path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        raise ConfigError(f"{path} is no checkpoint: allowed are .safetensors, {', '.join(PICKLE_SUFFIXES)}, a folder")
    if not path.is_file():
        raise ConfigError(f"{path} is missing; give the file or folder of the model's weights")
    return (path,)


def _indexed_files(index: Path) -> tuple[Path, ...]:
    try:
        shards = json.loads(index.read_text())["weight_map"].values()
        files = tuple(index.parent / name for name in sorted(set(shards)))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ConfigError(f"{index} is not an index of shards ({error!r}); download it again") from error
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise ConfigError(f"{index} names shards that are missing: {_listed(missing)}; download them, too")
    return files


def read_shard(file: Path, sections: Sequence[str] = ()) -> Iterator[tuple[str, Tensor]]:
    """Names and tensors of one file, on the CPU, in the dtype of the file. Raises ConfigError.

    `sections`: where a .pt file holds several tables of tensors, the names of those wanted, best first.
    """
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt") as shard:
                for name in shard.keys():  # noqa: SIM118 - it is no mapping
                    yield name, shard.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ConfigError(f"{file} cannot be read ({error}); download it again") from error
        return
    yield from _read_pickle(file, sections).items()


def tensor_shapes(path: Path, sections: Sequence[str] = ()) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a checkpoint by their published names; no tensor is read. Raises ConfigError.

    For `sections` see `read_shard`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for file in checkpoint_files(path):
        if file.suffix == ".safetensors":
            try:
                with safe_open(file, framework="pt") as shard:
                    shapes |= {name: tuple(shard.get_slice(name).get_shape()) for name in shard.keys()}  # noqa: SIM118
            except (SafetensorError, OSError) as error:
                raise ConfigError(f"{file} cannot be read ({error}); download it again") from error
        else:
            shapes |= {name: tuple(tensor.shape) for name, tensor in _read_pickle(file, sections).items()}
    return shapes


def _read_pickle(file: Path, sections: Sequence[str]) -> dict[str, Tensor]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"{file} cannot be read as tensors only ({reason}); use a checkpoint without code") from error
    for key in (*sections, *WRAPPERS):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
        keys = f" with the keys {_listed(sorted(map(str, content)))}" if isinstance(content, dict) else ""
        raise ConfigError(
            f"{file} holds a {type(content).__name__}{keys} that is not a table of tensors; export its weights"
        )
    return content


def load_checkpoint(
    module: nn.Module,
    path: Path,
    device: torch.device | str = "cpu",
    rename: Callable[[str], str | None] = lambda name: name,
    convert: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
    sections: Sequence[str] = (),
) -> None:
    """Gives every parameter and buffer of `module` (which may lie on "meta") its published tensor, without gradient.

    `rename`: published name -> the module's name, or None for a tensor that the module does not use. `convert`: last
    change to a tensor under its new name (order of channels, shape). For `sections` see `read_shard`. The dtypes are
    those of the module's parameters.
    Raises ConfigError naming missing and surplus keys and wrong shapes; the module is then not to be used.
    """
    wanted = dict(module.state_dict(keep_vars=True))
    surplus, wrong, filled = [], [], set()
    for file in checkpoint_files(path):
        for published, tensor in read_shard(file, sections):
            name = rename(published)
            if name is None:
                continue
            if name not in wanted:
                surplus.append(published)
                continue
            tensor = convert(name, tensor)
            if tensor.shape != wanted[name].shape:
                wrong.append(f"{published} {list(tensor.shape)} instead of {list(wanted[name].shape)}")
                continue
            _assign(module, name, tensor.to(device=device, dtype=wanted[name].dtype, copy=True))
            filled.add(name)
    if wrong:
        raise ConfigError(f"{path} has the weights of another model: {_listed(wrong)}")
    missing = sorted(wanted.keys() - filled)
    if missing or surplus:
        raise ConfigError(
            f"{path} does not fit the model: missing keys {_listed(missing)}; surplus keys {_listed(sorted(surplus))}"
        )


def _assign(module: nn.Module, name: str, tensor: Tensor) -> None:
    owner_name, _, leaf = name.rpartition(".")
    owner = module.get_submodule(owner_name)
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
    return ", ".join(names[:MAX_NAMED]) + more
