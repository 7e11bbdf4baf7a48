"""Imports go one way: a file may use its own room and the rooms below it, and no file uses itself through others.

Imports inside functions and for type checkers only count as well.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "pagedvid"

ROOMS = (
    (
        "pagedvid.errors",
        "pagedvid.units",
        "pagedvid.shown",
        "pagedvid.arguments",
        "pagedvid.devices",
        "pagedvid.host_state",
        "pagedvid.handles",
    ),
    ("pagedvid.files",),
    ("pagedvid.rotary",),
    ("pagedvid.codecs",),
    ("pagedvid.correction",),
    ("pagedvid.budgets",),
    ("pagedvid.cache",),
    ("pagedvid.attention",),
    ("pagedvid.distributed",),
    ("pagedvid.paged_kv_cache", "pagedvid"),
    ("pagedvid.engine",),
    ("pagedvid.networks",),
    ("pagedvid.config",),
    ("pagedvid.integrations",),
    ("pagedvid.models",),
    ("pagedvid.calibration",),
    ("pagedvid.capacity",),
    ("pagedvid.output",),
    ("pagedvid.quality",),
    ("pagedvid.service",),
    ("pagedvid.cluster",),
    ("pagedvid.cli",),
    ("pagedvid.__main__",),
)
"""From the bottom up, each once. Settings name codecs, corrections and policies, so `config` is above them."""

NOT_FOR_MODELS = (
    "pagedvid.codecs",
    "pagedvid.correction",
    "pagedvid.budgets",
    "pagedvid.cache",
    "pagedvid.attention",
    "pagedvid.paged_kv_cache",
)
"""A model never sees the cache."""
PLAIN_OF_THE_CACHE = (
    "pagedvid.cache.window",
    "pagedvid.cache.sizes",
    "pagedvid.cache.stream_codecs",
    "pagedvid.codecs.assignment",
)
"""Integers: no tensor, and nothing that runs."""
BUILDERS = ("pagedvid.models.build", "pagedvid.models.storage")
"""Put a model and a cache together."""

ONE_FILE_LIBRARIES = (
    "av",
    "PIL",
    "rich",
    "flash_attn",
    "flash_attn.cute",
    "xformers",
    "matplotlib",
    "transformers",
    "diffusers",
    "diffusers.hooks",
    "flashdreams",
    "lightx2v",
    "sglang",
    "ray",
    "fsspec",
    "gguf",
    "lpips",
)
"""Optional or heavy libraries, each behind one adapter file."""

SERVICE_LIBRARIES = (
    "fastapi",
    "starlette",
    "pydantic",
    "uvicorn",
    "anyio",
    "websockets",
    "python_multipart",
    "prometheus_client",
)
"""Of the extra `serve`: only the HTTP layer imports them, and the command to see whether they are there."""

FILES = sorted(PACKAGE.rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = frozenset(map(module_of, FILES))


@cache
def imported_modules(path: Path) -> tuple[str, ...]:
    """Every module that a file imports, wherever in the file; `from a import b` counts as a.b if that is a module."""
    found: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in MODULES else str(node.module) for name in inner]
    return tuple(found)


def room_of(module: str) -> int:
    """The room with the longest matching name."""
    matches = [
        (len(name), level)
        for level, names in enumerate(ROOMS)
        for name in names
        if module == name or (name != "pagedvid" and module.startswith(f"{name}."))
    ]
    assert matches, f"{module} belongs to no room: add it to ROOMS"
    return max(matches)[1]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_imports_point_downwards(path):
    module = module_of(path)
    for imported in imported_modules(path):
        if not imported.startswith("pagedvid."):
            continue  # other libraries, and the package itself, whose public names are imported when first used
        assert room_of(imported) <= room_of(module), f"{module} imports {imported}, which is above it"
        if module.startswith("pagedvid.models.") and module not in BUILDERS and imported not in PLAIN_OF_THE_CACHE:
            assert not imported.startswith(NOT_FOR_MODELS), f"{module} imports {imported}: a model never sees the cache"


def test_no_module_imports_itself_through_others():
    graph = {module_of(path): set(imported_modules(path)) for path in FILES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_every_room_is_listed_once():
    names = [name for level in ROOMS for name in level]
    assert len(set(names)) == len(names)
    assert {".".join(module_of(path).split(".")[:2]) for path in FILES} == set(names)


def test_each_heavy_library_is_imported_in_one_file():
    users = defaultdict(set)
    for path in FILES:
        for imported in imported_modules(path):
            library = max((name for name in ONE_FILE_LIBRARIES if f"{imported}.".startswith(f"{name}.")), default="")
            users[library].add(module_of(path))
    for library in ONE_FILE_LIBRARIES:
        assert len(users[library]) <= 1, f"{library} is imported by {sorted(users[library])}"


def test_the_libraries_of_the_service_are_imported_there_only():
    users = {
        module_of(path)
        for path in FILES
        if any(imported.partition(".")[0] in SERVICE_LIBRARIES for imported in imported_modules(path))
    }
    assert users
    assert all(user == "pagedvid.cli.serve" or user.startswith("pagedvid.service.http.") for user in users), users


def test_triton_is_imported_beside_the_kernels_only():
    users = {module_of(path) for path in FILES if any(name.startswith("triton") for name in imported_modules(path))}
    assert users and all("kernels" in user.split(".") or user.startswith("pagedvid.codecs.triton_") for user in users)


def test_no_environment_variable_is_read_outside_one_file():
    readers = [module_of(path) for path in FILES if "environ" in path.read_text() or "getenv" in path.read_text()]
    assert len(readers) <= 1, readers


def test_the_walk_sees_imports_inside_functions(tmp_path):
    path = tmp_path / "file.py"
    path.write_text(
        "if TYPE_CHECKING:\n    import torch\ndef f():\n    from pagedvid.cli import main\n    import av.video\n"
    )
    assert imported_modules(path) == ("torch", "pagedvid.cli.main", "av.video")
