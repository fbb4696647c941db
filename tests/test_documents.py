"""Links of the documents, and the names that the API reference has to cover."""

from __future__ import annotations

import importlib
import re
from ast import literal_eval
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import grainrank

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "api").glob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "llms.txt", *sorted((ROOT / "docs").glob("*.md")), *PAGES]
#: Modules whose `__all__` is public, and public names of modules without one.
MODULES = ["grainrank", *(f"grainrank.{x}" for x in ("evaluation", "heads", "metrics", "rl"))]
OTHERS = [
    *(f"data.icd10.{name}" for name in ("Icd10", "Queries", "load")),
    *(f"data.emoji.{name}" for name in ("Emoji", "load", "pictures")),
    "check.gradients.check_gradients",
    "grad_cache.cached_loss",
    *(f"testing.{name}" for name in ("Draw", "Inputs", "Shape", "assert_accurate")),
    *(f"testing.{name}" for name in ("make_dense_levels", "make_inputs")),
]


def prose(path: Path) -> str:
    """Without blocks of code."""
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """As GitHub makes them of headings; mkdocs too, as long as no heading stands there twice."""
    found = set()
    for heading in re.findall(r"^#+ (.*)$", prose(path), flags=re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        found.add(re.sub(r"[^\w\- ]", "", text).strip().replace(" ", "-"))
    return found


def links(path: Path) -> Iterator[str]:
    for target in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", prose(path)):
        if not re.match(r"[a-z]+:", target):
            yield target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(document: Path) -> None:
    for link in links(document):
        name, _, anchor = link.partition("#")
        target = document.parent / name if name else document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def test_links_are_found() -> None:
    """A pattern that finds none would pass."""
    assert "docs/losses.md" in set(links(ROOT / "README.md"))
    assert "losses.md#1-what-labels-have-you-got" in set(links(ROOT / "docs" / "quick_start.md"))
    assert "the-formula" in anchors(ROOT / "README.md")


def found(path: str) -> object:
    """What a dotted path names."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:end]))
        except ModuleNotFoundError:
            continue
        for part in parts[end:]:
            value = getattr(value, part)
        return value
    raise AssertionError(path)


def entries() -> list[tuple[str, str]]:
    """Page and dotted path of every entry of the API reference."""
    return [
        (page.name, path)
        for page in PAGES
        for path in re.findall(r"^::: (\S+)$", page.read_text(), flags=re.MULTILINE)
    ]


def test_api_pages_have_every_public_name_once() -> None:
    public = [f"{m}.{name}" for m in MODULES for name in found(m).__all__]  # type: ignore[attr-defined]
    public += [f"grainrank.{name}" for name in OTHERS]
    given = [(page, path) for page, path in entries() if ".integrations." not in path]
    # By object, which may have two public names: `grainrank.heads.multi_level_nce`.
    where: dict[int, list[str]] = {}
    for page, path in given:
        where.setdefault(id(found(path)), []).append(f"{page}: {path}")
    entry_of = {name: where.get(id(found(name)), []) for name in public}
    assert {name: lines for name, lines in entry_of.items() if len(lines) != 1} == {}
    assert {path for _, path in given} <= set(public)


def test_api_pages_have_every_integration_once() -> None:
    """Read, not imported: the libraries may be missing."""
    folder = ROOT / "python" / "grainrank" / "integrations"
    public = []
    for path in (*folder.glob("*.py"), *folder.glob("*/__init__.py")):
        listed = re.search(r"^__all__ = (\[.*?\])", path.read_text(), re.DOTALL | re.MULTILINE)
        if listed is not None:
            module = path.parent.name if path.name == "__init__.py" else path.stem
            public += [f"grainrank.integrations.{module}.{x}" for x in literal_eval(listed[1])]
    assert len(public) > 0
    given = [path for _, path in entries() if ".integrations." in path]
    assert sorted(given) == sorted(public)


def test_contents_of_the_site() -> None:
    """mkdocs.yml, the first page and llms.txt name every page."""
    for page in [*(ROOT / "docs").glob("*.md"), *PAGES]:
        path = page.relative_to(ROOT / "docs").as_posix()
        assert f": {path}\n" in (ROOT / "mkdocs.yml").read_text(), path
        if path != "index.md":
            assert f"({path})" in (ROOT / "docs" / "index.md").read_text(), path
            assert f"(docs/{path}): " in (ROOT / "llms.txt").read_text(), path


def test_cheat_sheet() -> None:
    """llmstxt.org: a title, a summary, sections of links; and the code runs."""
    text = (ROOT / "llms.txt").read_text()
    assert re.match(r"# grainrank\n\n> ", text)
    listed = text[text.index("\n## ") :].splitlines()
    assert all(re.match(r"(## .+|- \[.+\]\(.+\): .+|)$", line) for line in listed)
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    names: dict[str, object] = {}
    torch.manual_seed(0)
    exec(code, names)
    for name in ("loss", "ndcg"):
        value = names[name]
        assert isinstance(value, torch.Tensor)
        assert torch.isfinite(value)


def test_extras_are_listed() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    _, _, section = text.partition("[project.optional-dependencies]")
    extras = re.findall(r"^(\w+) = \[", section.partition("\n[")[0], re.MULTILINE)
    assert "demo" in extras
    lines = re.findall(
        r"^\| (`.*) \|", (ROOT / "docs" / "quick_start.md").read_text(), re.MULTILINE
    )
    listed = {name for line in lines for name in re.findall(r"`(\w+)`", line.split(" | ")[0])}
    assert set(extras) <= listed


def test_every_name_of_the_package_is_in_the_documents() -> None:
    text = "".join(path.read_text() for path in (ROOT / "llms.txt", *PAGES))
    assert [name for name in grainrank.__all__ if not re.search(rf"\b{name}\b", text)] == []
