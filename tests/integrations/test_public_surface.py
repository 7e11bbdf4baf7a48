"""Adapters use what any embedder may use: they reach neither inside a cache nor into private names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import pagedvid

ADAPTERS = sorted((Path(pagedvid.__file__).parent / "integrations").rglob("*.py"))
INSIDE = {"backend", "pool", "book"}
"""Parts of a cache that no adapter names."""


@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_adapters_stay_outside_of_the_cache(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute):
            assert node.attr not in INSIDE, f"{path.name}:{node.lineno} names {ast.unparse(node)}"
            of_cache = ast.unparse(node.value).split(".")[-1].lstrip("_") in ("cache", "stream", "step", "window")
            assert not (of_cache and node.attr.startswith("_")), f"{path.name}:{node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pagedvid"):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"{path.name}:{node.lineno} imports {private}"
