"""How a compiled graph names a Python object: by a tensor that holds its number.

torch.compile makes what it knows of an object a constant of the graph. A step lives for one forward and a rope for one
video, so each of them would need a graph of its own, or the graph would keep using the first one. The contents of a
tensor never become constants: they are read when the graph runs.
"""

from __future__ import annotations

import itertools
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor

from pagedvid.errors import StateError
from pagedvid.host_state import independent_of_host


class Compilable:
    """Base of objects that compiled code may give to `step.attend`: ropes and projections of a host's own classes.

    Adds nothing but the attribute `handle`, an int64 tensor [] on the CPU, different for every object; a copy has its
    own. Nothing else needs to be called or overridden.
    """

    handle: Tensor

    def __new__(cls, *args: object, **kwargs: object) -> Any:
        """A new object with its handle; arguments are left to `__init__`."""
        made = super().__new__(cls)
        number = next(_NUMBERS)
        object.__setattr__(made, "handle", _new_handle(number))  # classes may be frozen
        _LIVE[number] = made
        return made

    def __getstate__(self) -> dict[str, object]:
        """What a copy takes over."""
        return {name: value for name, value in self.__dict__.items() if name != "handle"}


def object_of(handle: Tensor) -> Any:
    """The object with this handle. Raises StateError when it is gone."""
    made = _LIVE.get(int(handle))
    if made is None:
        raise StateError("compiled code names an object that is gone; keep steps and ropes while they are used")
    return made


def layer_numbers(num_layers: int) -> list[Tensor]:
    """0, 1, ..., each an int64 tensor [] on the CPU: what blocks that may be compiled give to `attend` as their layer.
    A plain number would be built into the graph, and every block would get a graph of its own."""
    return [_new_handle(number) for number in range(num_layers)]


@independent_of_host
def _new_handle(number: int) -> Tensor:
    return torch.tensor(number, dtype=torch.int64, device="cpu")


_NUMBERS = itertools.count()
_LIVE: WeakValueDictionary[int, Compilable] = WeakValueDictionary()
