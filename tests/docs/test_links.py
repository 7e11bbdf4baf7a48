"""Every relative link and picture leads to a file, every anchor to a heading; files and names in `code` exist."""

from __future__ import annotations

import re
from pathlib import Path
from pkgutil import resolve_name

import pytest

from tests.docs.pages import PAGES, ROOT, name_of, prose

LINK = re.compile(r"\]\(([^)\s]+)\)")
ROOTS = "pagedvid|benchmarks|configs|docs|tests|tools|models|rotary|codecs|attention|engine|cache"
OURS = re.compile(rf"`((?:{ROOTS})/[\w./-]*)`")
"""Files and folders, from the root of the repository or of the package."""
NAME = re.compile(r"`(pagedvid(?:\.\w+)+)")


def anchors_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors_of(target), link


def test_every_page_of_docs_can_be_reached_from_the_readme() -> None:
    readme, docs = PAGES[0], [page for page in PAGES if page.parent.name == "docs"]
    linked = {(readme.parent / link).resolve() for link in LINK.findall(prose(readme)) if "://" not in link}
    assert len(docs) > 5 and {page.resolve() for page in docs} <= linked


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_files_that_are_named_exist(page: Path) -> None:
    for path in OURS.findall(prose(page)):
        assert (ROOT / path).exists() or (ROOT / "pagedvid" / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_of_the_package_that_are_named_exist(page: Path) -> None:
    for name in NAME.findall(prose(page)):
        resolve_name(name)
