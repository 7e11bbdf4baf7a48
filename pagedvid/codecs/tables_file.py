"""What codecs know of a model, in a file: the means of its keys and values, tables of klt codecs, error curves.

A safetensors file, in half precision where that does no harm: encoding and decoding use the same rounded numbers.
For each kind, "keys" and "values" (L layers, H KV heads, D head_dim, F frames of a block, N = F * D coefficients):

    {kind}.mean       float32 [L, H, D]
    {kind}.spectrum   float32 [L, N]         importance by rank                         klt codecs
    {kind}.analysis   float16 [L, H, D, D]                                              klt codecs
    {kind}.deviation  float16 [L, H, N]      log2                                       klt codecs
    {kind}.order      int16   [L, H, N]      coefficients by falling importance         klt codecs

and the tensors of a profile, which budgets/profile.py describes and checks. `pagedvid calibrate` writes everything,
`pagedvid profile` no tables of klt codecs. The metadata are the fields of `Calibration` as strings, the facts of the
profile, and the version of the format. Version 1 had tables of klt codecs only; it is still read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pagedvid.arguments import instance_of
from pagedvid.codecs.klt.blocks import BlockLayout
from pagedvid.codecs.klt.tables import KltTables
from pagedvid.errors import ConfigError
from pagedvid.files.paths import readable_file
from pagedvid.host_state import independent_of_host
from pagedvid.shown import named

VERSION = "pagedvid klt tables 2"
READABLE = ("pagedvid klt tables 1", VERSION)
KINDS = ("keys", "values")
_DTYPES = {
    "spectrum": torch.float32,
    "mean": torch.float32,
    "analysis": torch.float16,
    "deviation": torch.float16,
    "order": torch.int16,
}
_NUMBERS = ("num_layers", "num_kv_heads", "head_dim", "tokens_per_frame", "frames_per_block")


@dataclass(frozen=True, eq=False)
class Calibration:
    """What klt codecs know of a model, in the form of the file."""

    model: str
    num_layers: int
    num_kv_heads: int
    head_dim: int
    tokens_per_frame: int
    frames_per_block: int
    calibrated_on: str
    """For people: what the model was run on, in a few words."""
    tensors: Mapping[str, Tensor]
    facts: Mapping[str, str] = field(default_factory=dict)
    """What else the metadata say."""

    @staticmethod
    def of(model: str, keys: Sequence[KltTables], values: Sequence[KltTables], calibrated_on: str = "") -> Calibration:
        """From the tables of every layer, rounded to the precision of the file."""
        first = keys[0]
        tensors: dict[str, Tensor] = {}
        for kind, layers in zip(KINDS, (keys, values), strict=True):
            columns = {
                "spectrum": torch.stack([tables.spectrum_N for tables in layers]),
                "mean": torch.stack([tables.mean_hD for tables in layers]),
                "analysis": torch.stack([tables.analysis_hDD for tables in layers]),
                "deviation": torch.stack([tables.deviation_hN for tables in layers]).log2(),
                "order": torch.stack([tables.order_hN for tables in layers]),
            }
            tensors |= {f"{kind}.{name}": x.to(_DTYPES[name]).cpu().contiguous() for name, x in columns.items()}
        layout = first.layout
        shape = (len(keys), first.num_heads, first.head_dim, layout.tokens_per_frame, layout.num_frames)
        return Calibration(model, *shape, calibrated_on, tensors)

    @staticmethod
    def of_means(
        model: str, layout: BlockLayout, keys_LHD: Tensor, values_LHD: Tensor, calibrated_on: str = ""
    ) -> Calibration:
        """Without tables of klt codecs; means are float32."""
        tensors = {f"{kind}.mean": x.cpu().contiguous() for kind, x in zip(KINDS, (keys_LHD, values_LHD), strict=True)}
        num_layers, num_heads, head_dim = keys_LHD.shape
        shape = (num_layers, num_heads, head_dim, layout.tokens_per_frame, layout.num_frames)
        return Calibration(model, *shape, calibrated_on, tensors, {"tables": "means"})

    def including(self, tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> Calibration:
        """The same with these tensors and facts besides its own."""
        return replace(self, tensors={**self.tensors, **tensors}, facts={**self.facts, **facts})

    @property
    def num_bytes(self) -> int:
        """Bytes of all tables, once per model."""
        return sum(x.numel() * x.element_size() for x in self.tensors.values())

    @property
    def has_klt(self) -> bool:
        """Whether there are tables of klt codecs."""
        return self.facts.get("tables", "klt") == "klt"

    def mean(self, kind: str, layer: int) -> Tensor:
        """The mean "keys" or "values" of one layer, float32 [H, D]. Raises ConfigError for any other."""
        self._check(kind, layer)
        return self.tensors[f"{kind}.mean"][layer]

    def tables(self, kind: str, layer: int) -> KltTables:
        """The tables for the "keys" or "values" of one layer, all its KV heads. Raises ConfigError for any other."""
        self._check(kind, layer)
        if not self.has_klt:
            raise ConfigError(
                f"this file of {self.model} has no tables for klt codecs; make one that does with `pagedvid calibrate`"
            )
        return KltTables(
            BlockLayout(self.tokens_per_frame, self.frames_per_block),
            self.tensors[f"{kind}.spectrum"][layer],
            self.tensors[f"{kind}.mean"][layer],
            self.tensors[f"{kind}.analysis"][layer].float(),
            self.tensors[f"{kind}.deviation"][layer].float().exp2(),
            self.tensors[f"{kind}.order"][layer].long(),
        )

    def _check(self, kind: str, layer: int) -> None:
        if kind not in KINDS or not 0 <= layer < self.num_layers:
            raise ConfigError(
                f"there are no tables for {kind} of layer {layer}; those of {self.model} are for keys and values of "
                f"layers 0 to {self.num_layers - 1}"
            )


def save_calibration(calibration: Calibration, path: Path | str) -> None:
    """Writes the file under a temporary name and renames it, so that a partly written file is never found.

    Raises ConfigError if it cannot be written.
    """
    path = Path(path)
    names = ("model", *_NUMBERS, "calibrated_on")
    fields = {name: str(getattr(calibration, name)) for name in names}
    metadata = {**calibration.facts, **fields, "format": VERSION}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(save(dict(calibration.tensors), metadata))
        os.replace(temporary, path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error}") from error
    finally:
        with suppress(OSError):  # there may be no temporary file: renamed, or never written
            temporary.unlink()


@independent_of_host
def load_calibration(path: Path | str) -> Calibration:
    """Reads and checks a file. Raises ConfigError if it is missing, damaged, or in another version of the format."""
    path = instance_of(Path, "tables", Path(path) if isinstance(path, str) else path, "the path of a file", ConfigError)
    readable_file(path, f"`pagedvid calibrate --out {named(path)}` makes it")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{path} cannot be read ({error}); make it again with `pagedvid calibrate`") from error
    if metadata.get("format") not in READABLE:
        raise ConfigError(
            f"{path} has the format {metadata.get('format')!r}; this version reads {', '.join(map(repr, READABLE))}. "
            "Make it again with `pagedvid calibrate`"
        )
    try:
        numbers = {name: int(metadata[name]) for name in _NUMBERS}
        names = {"format", "model", "calibrated_on", *_NUMBERS}
        calibration = Calibration(
            model=metadata["model"],
            **numbers,
            calibrated_on=metadata["calibrated_on"],
            tensors=tensors,
            facts={name: text for name, text in metadata.items() if name not in names},
        )
    except (KeyError, ValueError) as error:
        raise ConfigError(f"{path} does not describe its model ({error!r}); make it again") from error
    _check_tensors(calibration, path)
    return calibration


def _check_tensors(calibration: Calibration, path: Path) -> None:
    """Raises ConfigError for tensors that are missing, unusable, or not of the size that the metadata state."""
    by_head = (calibration.num_layers, calibration.num_kv_heads)
    size, head_dim = calibration.frames_per_block * calibration.head_dim, calibration.head_dim
    shapes = {
        "spectrum": (calibration.num_layers, size),
        "mean": (*by_head, head_dim),
        "analysis": (*by_head, head_dim, head_dim),
        "deviation": (*by_head, size),
        "order": (*by_head, size),
    }
    if not calibration.has_klt:
        shapes = {"mean": shapes["mean"]}
    for kind in KINDS:
        for name, shape in shapes.items():
            tensor = calibration.tensors.get(f"{kind}.{name}")
            if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != _DTYPES[name]:
                found = "missing" if tensor is None else f"{tensor.dtype} {list(tensor.shape)}"
                raise ConfigError(
                    f"{path}: {kind}.{name} is {found} instead of {_DTYPES[name]} {list(shape)}; make the file again "
                    "with `pagedvid calibrate`"
                )
            if not bool(torch.isfinite(tensor).all()):
                raise ConfigError(f"{path}: {kind}.{name} contains NaN or infinity; make the file again")
        if not calibration.has_klt:
            continue
        order = calibration.tensors[f"{kind}.order"].long()
        if not bool((order.sort(dim=-1).values == torch.arange(size)).all()):
            raise ConfigError(f"{path}: {kind}.order leaves out coefficients; make the file again")
