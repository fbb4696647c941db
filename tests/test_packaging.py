"""Metadata and lists of files that a release depends on; `make wheelcheck` builds and uses it."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

import grainrank

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SETTINGS: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = SETTINGS["project"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def pythons() -> list[str]:
    """The versions of Python that wheels are built for."""
    return [f"3.{name[3:-2]}" for name in SETTINGS["tool"]["cibuildwheel"]["build"]]


def test_one_version() -> None:
    version = grainrank.__version__
    assert importlib.metadata.version("grainrank") == version
    assert str(Version(version)) == version
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    heading = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heading is not None
    assert heading[1] == Version(version).base_version
    others = [p for p in (ROOT / "python").rglob("*.py") if version in p.read_text()]
    assert [path.name for path in others] == ["_version.py"]


def test_metadata_of_the_installation_is_that_of_pyproject() -> None:
    found = importlib.metadata.metadata("grainrank")
    assert set(found.get_all("Provides-Extra") or []) == set(PROJECT["optional-dependencies"])
    assert found["Requires-Python"] == PROJECT["requires-python"]
    needed = [Requirement(x) for x in found.get_all("Requires-Dist") or [] if "extra ==" not in x]
    assert {str(x) for x in needed} == set(PROJECT["dependencies"])


def test_oldest_versions_that_are_promised_are_those_that_are_tried() -> None:
    """Lower bounds alone: check.py reads them, and an upper one would stop users."""
    for line in [*PROJECT["dependencies"], f"python{PROJECT['requires-python']}"]:
        (bound,) = Requirement(line).specifier
        assert bound.operator == ">=", line
    pinned = Requirement(
        next(x for x in (ROOT / "constraints.txt").read_text().splitlines() if x[:6] == "torch=")
    )
    (torch,) = (Requirement(x) for x in PROJECT["dependencies"] if x.startswith("torch"))
    (exact,) = pinned.specifier
    assert torch.specifier.contains(exact.version)


def test_python_versions_agree() -> None:
    named = [x.rpartition(" ")[2] for x in PROJECT["classifiers"] if "Python :: 3." in x]
    assert pythons() == named
    assert named == sorted(named, key=Version)
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(supported.contains(version) for version in named)
    assert PROJECT["requires-python"] == f">={named[0]}"
    assert SETTINGS["tool"]["mypy"]["python_version"] == named[0]
    assert f"Python {named[0]} to {named[-1]}" in (ROOT / "docs" / "installation.md").read_text()


def test_sdist_has_what_the_checkout_has() -> None:
    included = set(SETTINGS["tool"]["scikit-build"]["sdist"]["include"])
    assert {name for name in included if not (ROOT / name).exists()} == set()
    made = {"build", "dist", "demo-results", "PKG-INFO"}  # here, or in an unpacked sdist
    found = {path.name for path in ROOT.iterdir() if path.name[0] != "."}
    assert found - included - made == set()
    assert found - made != set()


def test_licences_are_in_the_sdist() -> None:
    included = SETTINGS["tool"]["scikit-build"]["sdist"]["include"]
    for name in PROJECT["license-files"]:
        assert (ROOT / name).is_file(), name
        assert name.split("/")[0] in included
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_the_build_needs_nothing_outside_the_sdist() -> None:
    """Files that CMakeLists.txt names are there, and none is above the root."""
    text = (ROOT / "CMakeLists.txt").read_text()
    named = set(re.findall(r"\b(?:csrc|kernels|tests|python)/[\w/]+\.(?:cpp|h|cu)\b", text))
    assert "csrc/passes.cpp" in named
    assert {name for name in named if not (ROOT / name).is_file()} == set()
    assert "../" not in text
    quoted = [p for p in (ROOT / "csrc").iterdir() if re.search(r'#include "\.\./', p.read_text())]
    assert quoted == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_call_what_exists(path: Path) -> None:
    text = path.read_text()
    jobs = yaml.safe_load(text)["jobs"]
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for job in jobs.values():
        called = job.get("strategy", {}).get("matrix", {}).get("target", [])
        assert {target.split()[0] for target in called} <= targets
        assert set(job.get("needs", [])) <= set(jobs)
    files = re.findall(r"\b(?:tests|python)/[\w/]+\.(?:py|txt)\b", text)
    assert bool(files) == (path.stem != "long")  # that one calls make alone
    assert [name for name in files if not (ROOT / name).is_file()] == []


def test_workflows_were_found() -> None:
    assert [path.stem for path in WORKFLOWS] == ["ci", "long", "wheels"]


def test_wheels_are_tried_with_a_script_that_exists() -> None:
    command = SETTINGS["tool"]["cibuildwheel"]["test-command"]
    (script,) = re.findall(r"\{project\}/(\S+)", command)
    assert (ROOT / script).is_file()


def test_every_mutant_can_be_planted() -> None:
    """A change of a line that a mutant changes takes the mutant along."""
    pytest.importorskip("tomllib")
    mutants = importlib.import_module("mutation.mutants")
    assert len(mutants.read()) == 50


def test_import_reaches_for_nothing() -> None:
    """No network, no program, and none of the optional libraries."""
    code = (
        "import sys, torch; sys.path.insert(0, 'tests/wheelcheck'); import use; "
        "sys.addaudithook(use.refuse); import grainrank; "
        "print(sorted((use.OPTIONAL - {'triton'}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


@pytest.mark.parametrize("call", ["socket.gethostbyname('localhost')", "os.system('true')"])
def test_reaching_is_refused(call: str) -> None:
    """Else the test above could not fail."""
    code = (
        "import os, socket, sys; sys.path.insert(0, 'tests/wheelcheck'); import use; "
        f"sys.addaudithook(use.refuse); {call}"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("grainrank must reach for nothing outside the process: ")
