"""Every example of a docstring runs, and every Python block of the documents."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
import sys
from pathlib import Path

import peers
import pytest
import torch

import grainrank

MODULES = [
    name
    for _, name, _ in pkgutil.walk_packages(grainrank.__path__, "grainrank.")
    if name.startswith("grainrank.") and not re.search(r"_native|__main__|kernels|tests", name)
]
ROOT = Path(__file__).parents[1]
DOCUMENTS = [  # with code that runs on a CPU
    ROOT / "README.md",
    ROOT / "docs" / "quick_start.md",
    ROOT / "docs" / "losses.md",
    ROOT / "docs" / "migration.md",
    ROOT / "docs" / "integrations.md",
    ROOT / "docs" / "elva.md",
    ROOT / "docs" / "distributed.md",
    ROOT / "docs" / "errors.md",
    ROOT / "docs" / "evaluation.md",
]


@pytest.mark.parametrize("name", ["grainrank", *MODULES])
def test_docstrings(name: str) -> None:
    if name.startswith("grainrank.cuda_"):
        pytest.importorskip("grainrank._cuda", reason="grainrank was built without nvcc")
    if name.startswith("grainrank.integrations."):
        pytest.importorskip(name, reason="needs the extras [st] and [hf]", exc_type=ImportError)
    module = importlib.import_module(name)
    names = {"torch": torch} | {key: getattr(grainrank, key) for key in grainrank.__all__}
    result = doctest.testmod(module, extraglobs=names, optionflags=doctest.ELLIPSIS)
    assert result.failed == 0


def test_public_docstrings_have_examples() -> None:
    for name in grainrank.__all__:
        value = getattr(grainrank, name)
        if (
            callable(value)
            and not name.endswith(("Statistics", "Options", "Result"))
            and name not in ("Diagonal",)
        ):
            text = value.__doc__ or ""
            assert ">>>" in text or name == "LevelSource", name


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a document run one after the other, and end in a loss or a report."""
    if document.name == "elva.md":
        pytest.importorskip("transformers", reason="needs the extra [eval]")
    if document.name == "integrations.md":
        pytest.importorskip("datasets", reason="needs the extra [st]")
        peers.sentence_transformers()
    if document.name == "migration.md":
        peers.sentence_transformers()
        peers.metric_learning()
        monkeypatch.setitem(sys.modules, "open_clip.loss", peers.open_clip_losses())
    blocks = re.findall(r"```python\n(.*?)```", document.read_text(), flags=re.DOTALL)
    assert blocks
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(block, namespace)
    if document.name == "evaluation.md":
        assert namespace["report"].judged == 100  # type: ignore[attr-defined]
        return
    loss = namespace["loss"]
    assert isinstance(loss, torch.Tensor)
    assert torch.isfinite(loss)
