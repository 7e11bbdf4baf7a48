"""Folders of models with one file spoiled, and what is to be said of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Spoil = Callable[[Path], None]


def replaced(content: bytes) -> Spoil:
    """Other bytes in its place."""

    def spoil(file: Path) -> None:
        file.write_bytes(content)

    return spoil


def piped(file: Path) -> None:
    """A pipe into which nobody writes."""
    file.unlink()
    os.mkfifo(file)


def with_matrix(name: str, change: Callable[[torch.Tensor], torch.Tensor], **more: torch.Tensor) -> Spoil:
    """One of its tensors changed, and others added."""

    def spoil(file: Path) -> None:
        tensors = load_file(file)
        save_file(tensors | {name: change(tensors[name]).contiguous(), **more}, file, {"format": "pt"})

    return spoil


SPOILED_FILES: dict[str, tuple[Spoil, str]] = {
    "lfs": (
        replaced(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 1234\n"),
        r"is a Git LFS pointer, not the file itself; run `git lfs pull`",
    ),
    "html": (replaced(b"<!DOCTYPE html><html>"), "is a web page, not the file itself"),
    "empty": (replaced(b""), "is empty; download it again"),
    "pipe": (piped, "is a pipe; give a plain file"),
}
"""Whatever the file is."""


def spoiled_weights(name: str) -> dict[str, tuple[Spoil, str]]:
    """For a file of weights with a tensor of that name."""
    one = torch.ones(1)
    eight_bits = lambda x: x.clamp(-1, 1).to(torch.float8_e4m3fn)  # noqa: E731
    return {
        "int8": (with_matrix(name, lambda x: x.to(torch.int8)), rf"not weights by themselves: {name} \(int8\)"),
        "bool": (with_matrix(name, lambda x: x > 0), rf"not weights by themselves: {name} \(bool\)"),
        "scaled float8": (
            with_matrix(name, eight_bits, **{name.replace(".weight", ".scale_weight"): one}),
            rf"not weights by themselves: {name} \(float8_e4m3fn\)",
        ),
        "nan": (with_matrix(name, lambda x: x.masked_fill(x == x.max(), float("nan"))), rf"{name} holds NaN or inf"),
    }
