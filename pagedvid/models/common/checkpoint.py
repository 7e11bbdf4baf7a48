"""Published weights into a module, one shard at a time: safetensors, with an index or in a single file, .pt, or GGUF.

    network = build_on_meta()                        # parameters have shapes and dtypes, but no memory
    load_checkpoint(network, path, device, rename)   # every parameter gets its tensor, its dtype, its device

The files are found by checkpoint_files.py, their names are read by checkpoint_names.py. files/tensor_files.py says
which numbers are weights, scaled_weights.py which become weights by a scale next to them. Names, shapes and dtypes of
all tensors are checked before the first one is read; memory holds the module and one shard at most.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from pagedvid.errors import ConfigError, listed
from pagedvid.files.paths import is_folder
from pagedvid.files.tensor_files import TensorFacts, refuse_codes, refuse_non_finite
from pagedvid.models.common.checkpoint_files import checkpoint_files
from pagedvid.models.common.checkpoint_names import by_own_name, in_best_table, plain_name
from pagedvid.models.common.fp8_linear import FP8, Fp8Linear
from pagedvid.models.common.scaled_weights import is_of_scaled_weights, scale_of_weights, scaled
from pagedvid.models.common.shard import read_shard, shard_facts
from pagedvid.shown import named


@dataclass(frozen=True)
class _Entry:
    """A tensor of a checkpoint, not read."""

    file: Path
    published: str
    facts: TensorFacts
    scale: str | None = None
    """Published name of the tensor that its codes are multiplied by; None: its numbers are weights."""


def tensor_shapes(path: Path, prefer_ema: bool = True) -> dict[str, tuple[int, ...]]:
    """Shapes of all tensors of a checkpoint by their plain names; no tensor is read. Raises ConfigError.

    `prefer_ema`: of a checkpoint with averaged and last weights, take the averaged ones.
    """
    entries = _entries(path, prefer_ema)
    by_own_name(((published, plain_name(published)) for published in entries), named(path))
    return {plain_name(published): entry.facts.shape for published, entry in entries.items()}


def load_checkpoint(
    module: nn.Module,
    path: Path,
    device: torch.device | str = "cpu",
    rename: Callable[[str], str | None] = lambda name: name,
    convert: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
    prefer_ema: bool = True,
) -> None:
    """Gives every parameter and buffer of `module` (which may be on "meta") its published tensor, without gradient.

    `rename`: plain name (checkpoint_names.py) -> the module's name, or None for a tensor that the module does not use.
    `convert`: last change to a tensor under its new name that keeps its shape (order of channels). For `prefer_ema` see
    `tensor_shapes`. The dtypes are those of the module's parameters; an `Fp8Linear` quantizes its own weights.
    Raises ConfigError naming missing and surplus keys, wrong shapes, codes of unknown scale and non-finite weights; the
    module is then not to be used.
    """
    entries, wanted = _entries(path, prefer_ema), dict(module.state_dict(keep_vars=True))
    renamed = ((published, rename(plain_name(published))) for published in entries)
    published_of = by_own_name(((published, own) for published, own in renamed if own is not None), named(path))
    _refuse_misfit(path, {own: entries[published] for own, published in published_of.items()}, wanted)
    own_of = {published: own for own, published in published_of.items()}
    scales = _scales(path, entries, prefer_ema)
    for file in dict.fromkeys(entry.file for entry in entries.values()):
        for published, tensor in read_shard(file, prefer_ema):
            if published not in own_of:
                continue
            name, scale = own_of[published], scales.get(published)
            codes_scale = torch.ones((), dtype=torch.float32) if scale is None and tensor.dtype == FP8 else scale
            weight = convert(name, tensor if scale is None else scaled(tensor, scale))
            owner_name, _, leaf = name.rpartition(".")
            owner = module.get_submodule(owner_name)
            eight_bit = owner if isinstance(owner, Fp8Linear) and leaf == "weight" else None
            dtype = wanted[name].dtype if eight_bit is None else torch.float32
            placed = weight.to(device=device, dtype=dtype, copy=True)
            refuse_non_finite(placed, published, file)
            if eight_bit is None:
                _assign(owner, leaf, placed)
            else:
                eight_bit.hold(placed, codes_scale)


def _refuse_misfit(path: Path, entries: Mapping[str, _Entry], wanted: Mapping[str, Tensor]) -> None:
    """Raises ConfigError when tensors, by the module's names, are of another shape than wanted, missing or surplus."""
    wrong = [
        f"{entry.published} {list(entry.facts.shape)} instead of {list(wanted[name].shape)}"
        for name, entry in entries.items()
        if name in wanted and entry.facts.shape != wanted[name].shape
    ]
    if wrong:
        raise ConfigError(f"{named(path)} has the weights of another model: {listed(wrong)}; give those of this one")
    missing = sorted(wanted.keys() - entries.keys())
    surplus = sorted(entry.published for name, entry in entries.items() if name not in wanted)
    if missing or surplus:
        raise ConfigError(
            f"{named(path)} does not fit the model: missing keys {listed(missing)}; surplus keys {listed(surplus)}; "
            "give the checkpoint of this model"
        )


def _entries(path: Path, prefer_ema: bool) -> dict[str, _Entry]:
    """The network's tensors in all files by published name, each once, and none of them a code of unknown scale."""
    found = [
        _Entry(file, name, facts)
        for file in checkpoint_files(path)
        for name, facts in shard_facts(file, prefer_ema).items()
    ]
    own = set(in_best_table((entry.published for entry in found), prefer_ema))
    entries = [entry for entry in found if entry.published in own]
    by_own_name(((entry.published, entry.published) for entry in entries), named(path))
    folder = path if is_folder(path) else path.parent
    scale_of = scale_of_weights({entry.published: entry.facts for entry in entries})
    plain = [entry for entry in entries if not (scale_of and is_of_scaled_weights(entry.published))]
    unscaled = {entry.published: entry.facts.dtype for entry in plain if entry.published not in scale_of}
    refuse_codes(path, unscaled, folder)
    return {entry.published: replace(entry, scale=scale_of.get(entry.published)) for entry in plain}


def _scales(path: Path, entries: Mapping[str, _Entry], prefer_ema: bool) -> dict[str, Tensor]:
    """The scales of weights by the published names of the weights."""
    weights_of: dict[str, list[str]] = {}
    for entry in entries.values():
        if entry.scale is not None:
            weights_of.setdefault(entry.scale, []).append(entry.published)
    files = checkpoint_files(path) if weights_of else ()
    found = (pair for file in files for pair in read_shard(file, prefer_ema, weights_of.keys()))
    return {weight: scale for name, scale in found for weight in weights_of[name]}


def _assign(owner: nn.Module, leaf: str, tensor: Tensor) -> None:
    if leaf in owner._parameters:
        owner._parameters[leaf] = nn.Parameter(tensor, requires_grad=False)
    else:
        owner._buffers[leaf] = tensor
