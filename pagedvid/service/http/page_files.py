"""The live page: plain files of pagedvid/service/page, open to everybody, because the page itself asks for the key."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI
from starlette.staticfiles import StaticFiles

FOLDER = Path(__file__).parents[1] / "page"


def page_paths() -> frozenset[str]:
    """The paths of requests for the page and its files."""
    files = (path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*") if path.is_file())
    return frozenset({"/", *(f"/{name}" for name in files)})


def add_page(app: FastAPI) -> None:
    """Serves the page at `/`. To be called last, because it takes every path that no endpoint has."""
    app.mount("/", StaticFiles(directory=FOLDER, html=True), name="page")
