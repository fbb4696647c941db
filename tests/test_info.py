"""`grainrank info`: what it says of this machine, and of machines that lack something."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from grainrank import backends, console
from grainrank.__main__ import main
from grainrank._version import __version__
from grainrank.bench import losses
from grainrank.info import facts, self_check
from grainrank.testing import Inputs

Loss = Callable[[Inputs, Tensor], Tensor]


@pytest.fixture
def info(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Exit code and output; nothing on the standard error."""

    def run(*arguments: str) -> tuple[int, str]:
        code = main(["info", *arguments])
        out, err = capsys.readouterr()
        assert err == ""
        return code, out

    return run


Info = Callable[..., tuple[int, str]]


def pairs(out: str) -> dict[str, str]:
    """Names and values, wrapped lines joined."""
    found: dict[str, str] = {}
    name = ""
    for line in out.splitlines():
        first, _, rest = line.partition(" ")
        if first:
            name = first
            found[name] = f"{found[name]}; {rest.strip()}" if name in found else rest.strip()
        else:
            found[name] += " " + rest.strip()
    return found


def test_a_screen_of_facts(info: Info, caplog: pytest.LogCaptureFixture) -> None:
    backends._pick.cache_clear()
    with caplog.at_level(logging.DEBUG, logger="grainrank"):
        code, out = info()
    assert code == 0
    assert caplog.records == []
    lines = out.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 100
    found = pairs(out)
    assert found["grainrank"].startswith(f"{__version__}; torch {torch.__version__}, numpy ")
    assert found["reference"] == "available; stores the N x M matrix"
    assert re.match(r"ok \(\d+\.\d s\): ", found["self-check"])


def test_json_says_the_same(info: Info, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "_native_error", lambda: None)
    code, out = info("--json")
    found = json.loads(out)
    assert (code, found["ok"]) == (0, True)
    assert found["machine"]["torch"] == torch.__version__
    assert found["numpy"] == importlib.metadata.version("numpy")
    assert found["instruction_sets"][-1] == "scalar"
    assert found["backends"]["cpu"] == {"available": True, "reason": None}
    assert found["auto"]["cpu"] == "cpu"
    assert {x["verdict"] for x in found["self_checks"]} == {"ok"}


def test_each_extra_brings_its_library() -> None:
    """Else the mend would not mend."""
    wanted = importlib.metadata.requires("grainrank") or []
    canonical = [re.sub(r"[-_.]+", "-", requirement).lower() for requirement in wanted]
    for name, extra in facts.EXTRAS.items():
        library = re.sub(r"[-_.]+", "-", name).lower()
        brought = any(
            re.match(rf"{re.escape(library)}\W", text) and f"extra == '{extra}'" in
            text.replace('"', "'")
            for text in canonical
        )  # fmt: skip
        assert brought or not extra, name


def test_missing_libraries_and_their_mends(info: Info, monkeypatch: pytest.MonkeyPatch) -> None:
    version = facts._version
    monkeypatch.setattr(
        facts, "_version", lambda name: None if name in facts.EXTRAS else version(name)
    )
    code, out = info()
    assert code == 0
    assert len(out.splitlines()) <= 24
    assert "libraries" not in pairs(out)
    assert "matplotlib: pip install 'grainrank[plot]'" in out
    assert "sentence-transformers: pip install 'grainrank[st]'" in out
    assert "transformers, accelerate: pip install 'grainrank[hf]'" in out
    assert "pillow: pip install 'grainrank[eval]'" in out
    assert "open_clip_torch: pip install open_clip_torch" in out


def test_without_the_native_library(
    info: Info, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(backends, "_native_error", lambda: "no such file")
    monkeypatch.setitem(sys.modules, "grainrank._native", None)
    monkeypatch.delattr("grainrank._native", raising=False)
    monkeypatch.delitem(sys.modules, "grainrank.cpu", raising=False)
    code, out = info()
    assert (code, caplog.records) == (0, [])
    found = pairs(out)
    assert found["cpu"] == (
        "no: needs the native library, which did not load (no such file): reinstall grainrank with "
        "a C++ compiler"
    )
    assert found["auto"] == "reference for cpu tensors"
    assert found["processor"].endswith("no native library")


def test_without_a_gpu_it_says_why(info: Info, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        backends, "_triton_error", lambda device: f"needs tensors on a GPU, got queries on {device}"
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert "no: needs a GPU; PyTorch, built for CUDA 13.0, sees none" in pairs(info()[1])["triton"]
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    assert pairs(info()[1])["gpu"] == (
        f"none; torch {torch.__version__} is built for the CPU alone: see pytorch.org"
    )


def test_with_gpus(info: Info, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two alike, of which nothing is computed on."""
    gpu = {"name": "Big", "memory": 80 * 2**30, "capability": "9.0"}
    checked: list[tuple[str, str]] = []

    def check(device: str, backend: str) -> dict[str, Any]:
        checked.append((device, backend))
        return {"device": device, "backend": backend, "verdict": "ok", "explanation": "",
                "seconds": 0.1}  # fmt: skip

    monkeypatch.setattr(facts, "gpus", lambda: [gpu, gpu])
    monkeypatch.setattr(backends, "_triton_error", lambda device: None)
    monkeypatch.setattr(backends, "_cuda_error", lambda device: "is not built: mend it")
    monkeypatch.setattr("grainrank.info.main.self_check", check)
    code, out = info()
    found = pairs(out)
    assert code == 0
    assert found["gpu"] == "2 x Big, 80.0 GiB, capability 9.0"
    assert found["triton"] == "available"
    assert found["cuda"] == "no: is not built: mend it"
    assert found["auto"].endswith("for cpu tensors, triton for cuda tensors")
    assert [device for device, _ in checked] == ["cpu", "cuda"]
    assert checked[1][1] == "triton"


def test_torch_without_distributed(info: Info, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_available", lambda: False)
    code, out = info()
    assert code == 0
    assert pairs(out)["distributed"] == "no: torch is built without it"


def bent(bend: Callable[[Inputs, Tensor], Tensor]) -> Callable[[str, str], Loss]:
    """`losses.ours` with something added to all but the reference."""

    def ours(loss: str, backend: str) -> Loss:
        right = losses.ours(loss, backend)
        if backend == "reference":
            return right
        return lambda inputs, scale: right(inputs, scale) + bend(inputs, scale)

    return ours


@pytest.mark.parametrize("name", ["queries", "candidates", "scale"])
def test_one_wrong_gradient_is_wrong(
    name: str, info: Info, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss itself is right."""

    def bend(inputs: Inputs, scale: Tensor) -> Tensor:
        x = scale if name == "scale" else getattr(inputs, name).flatten()[0]
        return 1e-3 * (x - x.detach())

    monkeypatch.setattr(backends, "_native_error", lambda: None)
    monkeypatch.setattr(self_check, "ours", bent(bend))
    code, out = info()
    found = pairs(out)["self-check"]
    assert code == 1
    assert re.match(r"WRONG \(.* s\): ", found)
    start = "scale's" if name == "scale" else f"{name}'"
    assert re.search(rf"{start} gradient: error \S+ is above", found)
    code, out = info("--json")
    assert (code, json.loads(out)["ok"]) == (1, False)


def test_a_self_check_that_cannot_run(info: Info, monkeypatch: pytest.MonkeyPatch) -> None:
    def bend(inputs: Inputs, scale: Tensor) -> Tensor:
        raise RuntimeError("no kernel\nfor this machine")

    monkeypatch.setattr(backends, "_native_error", lambda: None)
    monkeypatch.setattr(self_check, "ours", bent(bend))
    code, out = info()
    assert code == 2
    assert "failed" in pairs(out)["self-check"]
    assert "RuntimeError: no kernel for this machine" in pairs(out)["self-check"]


def test_the_heavy_libraries_are_not_imported() -> None:
    code = (
        "import sys; from grainrank.__main__ import main; code = main(['info', '--json']); "
        "heavy = {'sentence_transformers', 'transformers', 'open_clip', 'accelerate', "
        "'matplotlib', 'simple_icd_10_cm', 'PIL'} & set(sys.modules); sys.exit(str(heavy) if heavy "
        "else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["ok"]


def test_values_are_wrapped_to_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    value = "a quite-long value of words " * 5
    console.show_pairs([("name", value), ("other", "short")], 40)
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 40
    assert lines[0].startswith("name   a quite-long")
    assert all(line.startswith("       ") for line in lines[1:-1])
    assert lines[-1] == "other  short"
    assert " ".join("".join(lines[:-1]).split()[1:]) == value.strip()


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    for command in ("info", "demo", "check", "evaluate", "bench", "plot"):
        assert f"\n    {command} " in err


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"grainrank {__version__}\n"
