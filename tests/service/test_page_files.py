"""The page's files fit together: nothing comes from outside, nothing is inline, every name that is used exists."""

from __future__ import annotations

import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "pagedvid" / "service" / "page"
INDEX = (PAGE / "index.html").read_text()
MODULES = {path.name: path.read_text() for path in sorted(PAGE.glob("*.js"))}
STYLES = {path.name: path.read_text() for path in sorted(PAGE.glob("*.css"))}

VOID_TAGS = {"meta", "link", "input", "br", "img", "hr"}
FROM_MARKUP = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", "srcdoc")
"""Ways in which a text, such as a prompt, could become markup or code."""
IMPORT = re.compile(r'import\s+\{([^}]*)\}\s+from\s+"\./([^"]+)"')
EXPORT = re.compile(r"^export\s+(?:async\s+)?(?:function\*?|class|const)\s+(\w+)", re.MULTILINE)


class Structure(HTMLParser):
    """Collects a document's elements and complains about tags that do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open_tags: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> has an attribute twice: {attrs}"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID_TAGS:
            self.open_tags.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        line, _ = self.getpos()
        assert self.open_tags and self.open_tags.pop() == tag, f"line {line}: </{tag}> closes another element"


@pytest.fixture(scope="module")
def structure() -> Structure:
    parser = Structure()
    parser.feed(INDEX)
    parser.close()
    return parser


def values_of(structure: Structure, attribute: str) -> list[str]:
    return [attributes[attribute] or "" for _, attributes in structure.elements if attribute in attributes]


def test_every_element_is_closed(structure):
    assert structure.open_tags == []


def test_ids_are_unique(structure):
    ids = Counter(values_of(structure, "id"))
    assert max(ids.values()) == 1, ids.most_common(3)


def test_references_name_elements_that_exist(structure):
    ids = set(values_of(structure, "id"))
    for attribute in ("aria-labelledby", "aria-describedby", "for"):
        assert set(values_of(structure, attribute)) <= ids
    anchors = {href[1:] for href in values_of(structure, "href") if href.startswith("#")}
    assert anchors <= ids


def test_fields_have_labels():
    """Every field stands inside a label, so that it has a name to be read out."""
    without_labels = re.sub(r"<label.*?</label>", "", INDEX, flags=re.DOTALL)
    assert not re.search(r"<(input|textarea|select)\b", without_labels)


def test_nothing_is_inline(structure):
    """The content security policy allows no code and no styles in the document."""
    for tag, attributes in structure.elements:
        assert "style" not in attributes and not any(name.startswith("on") for name in attributes), (tag, attributes)
        assert tag != "style" and (tag != "script" or attributes.get("src")), (tag, attributes)


def test_the_policy_allows_this_server_only(structure):
    (policy,) = [a["content"] for _, a in structure.elements if a.get("http-equiv") == "Content-Security-Policy"]
    rules = {name: sources for name, *sources in (rule.split() for rule in (policy or "").split(";"))}
    assert rules["default-src"] == ["'none'"]
    assert {source for sources in rules.values() for source in sources} <= {"'none'", "'self'", "blob:"}


@pytest.mark.parametrize("path", sorted(PAGE.iterdir()), ids=lambda path: path.name)
def test_nothing_comes_from_outside(path):
    text = path.read_text().replace('xmlns="http://www.w3.org/2000/svg"', "")
    assert not re.search(r"\w+://|@import|(?:src|href)=\"//", text)


def test_every_file_is_used(structure):
    used = {"index.html", *values_of(structure, "src"), *values_of(structure, "href")}
    used |= {name for text in MODULES.values() for _, name in IMPORT.findall(text)}
    assert {path.name for path in PAGE.iterdir()} == {name for name in used if not name.startswith("#")}


@pytest.mark.parametrize("name", MODULES)
def test_imports_exist_and_are_used(name):
    text = MODULES[name]
    for names, source in IMPORT.findall(text):
        exported = set(EXPORT.findall(MODULES[source]))
        for imported in (part.strip() for part in names.split(",") if part.strip()):
            assert imported in exported, f"{source} does not export {imported}"
            assert len(re.findall(rf"\b{imported}\b", text)) > 1, f"{imported} is not used"


@pytest.mark.parametrize("name", MODULES)
def test_texts_never_become_markup(name):
    assert not [way for way in FROM_MARKUP if way in MODULES[name]]


def test_elements_that_modules_look_up_exist(structure):
    ids, parts = set(values_of(structure, "id")), set(values_of(structure, "data-part"))
    for name, text in MODULES.items():
        assert set(re.findall(r'getElementById\("([^"]+)"\)|cloned\("([^"]+)"\)', text)) <= {
            pair for id in ids for pair in ((id, ""), ("", id))
        }, name
        assert set(re.findall(r'partOf\([\w.]+, "([^"]+)"\)', text)) <= parts, name


def test_panels_have_templates(structure):
    ids = set(values_of(structure, "id"))
    assert {f"{panel}-panel" for panel in values_of(structure, "data-panel")} <= ids


def test_variables_of_the_styles_are_set_somewhere():
    text = "".join(STYLES.values())
    set_names = set(re.findall(r"(--[\w-]+)\s*:", text)) | set(re.findall(r'"(--[\w-]+)"', "".join(MODULES.values())))
    assert set(re.findall(r"var\((--[\w-]+)", text)) <= set_names


def test_light_and_dark_set_the_same_colors():
    light, dark = re.findall(r":root \{([^}]*)\}", STYLES["style.css"])
    dark_names = set(re.findall(r"(--[\w-]+):", dark))
    assert dark_names <= set(re.findall(r"(--[\w-]+):", light))
    assert {"--paper", "--ink", "--late", "--pool-free"} <= dark_names
