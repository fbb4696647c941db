"""Each adapter without its library: one error that names the extra; and grainrank without any."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

ADAPTERS = {"sentence_transformers": "st", "transformers": "hf"}


@pytest.mark.parametrize("library", ADAPTERS)
def test_a_missing_library_names_the_extra(library, monkeypatch):
    name = f"grainrank.integrations.{library}"
    for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(
        ModuleNotFoundError, match=rf"pip install 'grainrank\[{ADAPTERS[library]}\]'"
    ):
        importlib.import_module(name)


def test_an_old_sentence_transformers_says_which_is_needed(monkeypatch):
    import types

    name = "grainrank.integrations.sentence_transformers"
    for loaded in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    old = types.ModuleType("sentence_transformers")
    old.__version__ = "5.7.0"
    monkeypatch.setitem(sys.modules, "sentence_transformers", old)
    with pytest.raises(ImportError, match=r"6\.0 or newer, got 5\.7\.0: pip install -U"):
        importlib.import_module(name)


def test_grainrank_imports_none_of_them():
    """Nor anything else that is an extra."""
    extras = ("transformers", "sentence_transformers", "open_clip", "datasets", "lightning")
    more = ("matplotlib", "rich", "PIL", "faiss", "accelerate", "trl")
    code = (
        "import sys, grainrank, grainrank.rl, grainrank.evaluation, grainrank.grad_cache, "
        "grainrank.integrations.open_clip, grainrank.__main__; "
        f"print([m for m in {(*extras, *more)} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
