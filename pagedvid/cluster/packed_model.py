"""A loaded model as plain arrays, which processes of one machine share.

Ray's object store holds an object once per machine and maps arrays into every process that asks for it. So a model is
loaded once, its prompts are encoded once, and the weights in each worker's network are views of the same memory.

Not shared: tensors on a GPU, which are copied from the store into each worker's device memory; small tensors, because a
model may write to a buffer, and writing to shared memory ends the process; page pools and scratch, which workers fill
with different videos.
"""

from __future__ import annotations

import io
import pickle
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from typing_extensions import override

from pagedvid.cluster.library import pickle_library
from pagedvid.units import KIB

MIN_SHARED_BYTES = 64 * KIB
"""Smaller tensors are copied."""


@dataclass(frozen=True)
class PackedModel:
    """A model without the numbers of its tensors, and these."""

    skeleton: bytes
    arrays: list[NDArray[np.uint8]]
    """The bytes of every tensor, once each."""


@dataclass(frozen=True)
class _Place:
    """What stands for a tensor in the skeleton."""

    index: int
    """Of its array."""
    dtype: torch.dtype
    shape: tuple[int, ...]
    device_type: str
    is_parameter: bool


def pack(model: object) -> PackedModel:
    """Takes a model apart. Raises what pickling raises for a part that cannot be sent to other processes."""
    arrays: list[NDArray[np.uint8]] = []
    places: dict[int, _Place] = {}
    kept: list[Tensor] = []
    """Alive until the end, so that no two have the same id()."""

    class Packer(pickle_library().CloudPickler):  # type: ignore[misc]  # the library is optional
        def persistent_id(self, part: Any) -> _Place | None:
            if type(part) not in (Tensor, nn.Parameter) or part.is_meta:
                return None
            if id(part) not in places:
                place = _Place(
                    len(arrays), part.dtype, tuple(part.shape), part.device.type, isinstance(part, nn.Parameter)
                )
                places[id(part)] = place
                kept.append(part)
                arrays.append(part.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
            return places[id(part)]

    content = io.BytesIO()
    Packer(content, protocol=pickle.HIGHEST_PROTOCOL).dump(model)
    return PackedModel(content.getvalue(), arrays)


def unpack(packed: PackedModel) -> Any:
    """Puts a model together again. Its large CPU tensors are views of the arrays, which may be read-only."""
    tensors: dict[int, Tensor] = {}

    class Unpacker(pickle.Unpickler):
        @override
        def persistent_load(self, place: Any) -> Tensor:
            if place.index not in tensors:
                tensors[place.index] = _tensor(packed.arrays[place.index], place)
            return tensors[place.index]

    return Unpacker(io.BytesIO(packed.skeleton)).load()


def _tensor(array: NDArray[np.uint8], place: _Place) -> Tensor:
    if array.nbytes < MIN_SHARED_BYTES:
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        flat = torch.from_numpy(array)
    tensor = flat.view(place.dtype).reshape(place.shape).to(place.device_type)
    return nn.Parameter(tensor, requires_grad=False) if place.is_parameter else tensor
