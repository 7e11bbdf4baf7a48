"""The arguments of a network's forward in two parts: tensors, and a layout that says where each of them goes.

Two forwards with the same layout do the same operations on other numbers, so recorded graphs are looked up by layout.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pagedvid.errors import ShapeError

_PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class Layout:
    """Everything but the contents of the tensors. Equal ones are interchangeable, and can be looked up."""

    tree: Any
    """Nested tuples (kind, parts). The parts of a tensor are its place in the list; one that occurs twice has one."""
    shapes: tuple[tuple[torch.Size, torch.dtype], ...]
    """Of the tensors, in order."""

    def filled(self, tensors: Sequence[Tensor]) -> Any:
        """The arguments with these tensors."""
        return _filled(self.tree, tensors)


def taken_apart(arguments: Sequence[Any]) -> tuple[Layout, list[Tensor]]:
    """The layout of arguments, and their tensors.

    Arguments are tensors, plain values, and lists, tuples and dataclasses of such. Raises ShapeError for others.
    """
    tensors: dict[int, tuple[int, Tensor]] = {}
    tree = _tree(tuple(arguments), tensors)
    listed = [tensor for _, tensor in tensors.values()]
    return Layout(tree, tuple((tensor.shape, tensor.dtype) for tensor in listed)), listed


def _tree(given: Any, tensors: dict[int, tuple[int, Tensor]]) -> Any:
    if isinstance(given, Tensor):
        place, _ = tensors.setdefault(id(given), (len(tensors), given))
        return Tensor, place
    if type(given) in (list, tuple):
        return type(given), tuple(_tree(part, tensors) for part in given)
    if dataclasses.is_dataclass(given) and not isinstance(given, type):
        fields = [field.name for field in dataclasses.fields(given)]
        return type(given), tuple((name, _tree(getattr(given, name), tensors)) for name in fields)
    if isinstance(given, _PLAIN):
        return None, given
    raise ShapeError(f"a {type(given).__name__} among the arguments of a network; its graphs take tensors and numbers")


def _filled(tree: Any, tensors: Sequence[Tensor]) -> Any:
    kind, parts = tree
    if kind is None:
        return parts
    if kind is Tensor:
        return tensors[parts]
    if kind in (list, tuple):
        return kind(_filled(part, tensors) for part in parts)
    return kind(**{name: _filled(part, tensors) for name, part in parts})
