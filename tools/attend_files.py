"""Which files of the package one `attend` of the demo model goes through, on a denoise step and on a commit pass.

The fewer, the sooner a reader has seen the whole path. Counted by tracing the call in the last layer of a chunk's
second denoise step and of its commit pass, when what is made once for the chunk has been made.

    python tools/attend_files.py
    python tools/attend_files.py --codecs int2 klt1.5/klt3 int8
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import pagedvid
from pagedvid import PagedKVCache, QueryRange, Window
from pagedvid.attention.step import Step
from pagedvid.config.sections import CacheConfig, Config
from pagedvid.models.build import resolve
from pagedvid.models.demo.weights import load_demo

PACKAGE = Path(pagedvid.__file__).parent
CODECS = ("int2", "klt1.5/klt3")
"""The defaults without and with tables."""


@dataclass(frozen=True)
class Crossed:
    """What one call went through."""

    files: tuple[str, ...]
    num_functions: int
    num_calls: int


def attend_files(codec: str) -> dict[str, Crossed]:
    """By pass, "denoise" and "commit", what `attend` crosses when history is stored in that codec."""
    model, resolved = load_demo(), resolve(Config(cache=CacheConfig(codec=codec)))
    geometry, spec = model.geometry, resolved.cache
    cache = PagedKVCache(spec, "64MiB", tables=resolved.tables)
    stream = cache.open(Window(1, 2), geometry.chunk_tokens)
    qkv = [torch.randn(geometry.chunk_tokens, spec.num_kv_heads, spec.head_dim, dtype=torch.float32) for _ in range(3)]

    def run(commit: bool) -> Crossed:
        passes: AbstractContextManager[Step] = cache.step([QueryRange(stream, commit=commit)])
        with passes as step:
            for layer in range(spec.num_layers - 1):
                step.attend(layer, *qkv, model.rope)
            return traced(lambda: step.attend(spec.num_layers - 1, *qkv, model.rope))

    for _ in range(3):
        run(commit=True)
    run(commit=False)
    return {"denoise": run(commit=False), "commit": run(commit=True)}


def traced(call: Any) -> Crossed:
    """Calls it, and counts what it calls inside the package."""
    calls: list[tuple[str, str]] = []

    def on_call(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and path.is_relative_to(PACKAGE):
            calls.append((str(path.relative_to(PACKAGE)), frame.f_code.co_name))

    sys.setprofile(on_call)
    try:
        call()
    finally:
        sys.setprofile(None)
    return Crossed(tuple(sorted({file for file, _ in calls})), len(set(calls)), len(calls))


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--codecs", nargs="+", default=CODECS, help="codecs of the history")
    arguments = parser.parse_args(argv)
    for codec in arguments.codecs:
        for name, crossed in attend_files(codec).items():
            counts = f"{len(crossed.files)} files, {crossed.num_functions} functions, {crossed.num_calls} calls"
            print(f"{codec}, {name}: {counts}")
            print("    " + "\n    ".join(crossed.files))


if __name__ == "__main__":
    main()
