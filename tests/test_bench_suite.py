"""benchmarks/suite.py: what is timed is one loss, what is missing or too large is recorded."""

from __future__ import annotations

import importlib
import importlib.util
import json
import statistics
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from grainrank.bench import memory
from grainrank.bench.verify import Setting
from grainrank.testing import Inputs, Shape

ROOT = Path(__file__).parents[1]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SMALL = Shape(N=70, M=70, D=16)
LIBRARIES = {"sentence_transformers_cached": "sentence_transformers", "open_clip": "open_clip"}
GPU_PACKAGES = {
    "liger": "liger-kernel",
    "cut_cross_entropy": "cut-cross-entropy",
    "inf_cl": "inf-cl",
    "siglip_kernel": "siglip-kernel",
}
needs_proc = pytest.mark.skipif(
    not memory.can_measure(), reason="needs /proc/self/clear_refs, as on Linux"
)


@pytest.fixture
def alternatives(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Chunks that do not divide the rows of `SMALL`."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    module = importlib.import_module("alternatives")
    monkeypatch.setattr(module, "CHUNK_ROWS", 32)
    monkeypatch.setattr(module, "MINI_BATCH", 24)
    return module


@pytest.fixture
def suite(alternatives: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Checks on a small batch, and measures no peaks."""
    module = importlib.import_module("suite")
    check = module.check
    monkeypatch.setattr(module, "check", lambda case, names: check(case, names, SMALL))
    monkeypatch.setattr(module, "can_measure", lambda: False)
    return module


def case_of(suite: Any, loss: str, dtype: torch.dtype = torch.float32) -> Any:
    return suite.Case(loss, Setting(dtype, CPU), "reference")


def measured(suite: Any, tmp_path: Path, case: Any, **changed: Any) -> dict[str, Any]:
    """The file of a run on one small shape."""
    given: dict[str, Any] = {
        "shapes": [SMALL], "encoders": [], "kinds": ["step"],
        "limits": suite.Limits(None, 60.0, 2), "wanted": ["grainrank", "dense"], **changed,
    }  # fmt: skip
    out = tmp_path / "suite.json"
    found = suite.run(case, given.pop("shapes"), given.pop("encoders"), out=out, **given)
    assert json.loads(out.read_text()) == found
    return dict(found)


# What is timed is one loss.


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", ["multi_level", "info_nce", "clip", "siglip", "matryoshka"])
def test_every_provider_that_is_installed_agrees(
    suite: Any, alternatives: Any, loss: str, dtype: torch.dtype
) -> None:
    case = case_of(suite, loss, dtype)
    names, left_out = suite.providers_of(case)
    names.remove("compiled")  # PyTorch's compiler takes half a minute
    expected = [
        name
        for name, x in alternatives.PROVIDERS.items()
        if loss in x.losses and not x.gpu and name not in (*left_out, "compiled")
        if dtype in x.dtypes
    ]
    assert names == expected
    assert set(left_out) <= {
        name for name, package in LIBRARIES.items() if importlib.util.find_spec(package) is None
    }
    assert suite.check(case, names) == {}


@pytest.mark.parametrize("part", ["queries", "candidates"])
def test_a_wrong_gradient_is_not_timed(
    suite: Any, alternatives: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    right = alternatives.PROVIDERS["chunked"]

    def bent(case: Any) -> Any:
        def loss(inputs: Inputs, scale: Tensor) -> Tensor:
            x = getattr(inputs, part)[3, 1]
            return right.make(case)(inputs, scale) + 1e-2 * (x - x.detach())

        return loss

    monkeypatch.setitem(alternatives.PROVIDERS, "chunked", right._replace(make=bent))
    wanted = ["grainrank", "dense", "chunked"]
    found = measured(suite, tmp_path, case_of(suite, "clip"), wanted=wanted)
    assert found["ok"]
    assert list(found["wrong"]) == ["chunked"]
    assert f"{part}' gradient: error" in found["wrong"]["chunked"][0]
    assert list(found["shapes"][0]["providers"]) == ["grainrank", "dense", "products"]
    monkeypatch.setitem(alternatives.PROVIDERS, "dense", right._replace(make=bent))
    found = measured(suite, tmp_path, case_of(suite, "clip"))
    assert (found["ok"], list(found["wrong"]), found["shapes"]) == (False, ["dense"], [])


def test_a_chunk_that_is_left_out_is_found(
    suite: Any, alternatives: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check has more rows than the chunks of any provider."""
    assert max(alternatives.CHUNK_ROWS, alternatives.MINI_BATCH) < SMALL.N
    fresh = importlib.util.spec_from_file_location("fresh", ROOT / "benchmarks/alternatives.py")
    assert fresh is not None
    assert fresh.loader is not None
    module = importlib.util.module_from_spec(fresh)
    fresh.loader.exec_module(module)
    assert max(module.CHUNK_ROWS, module.MINI_BATCH) < suite.CHECKED.N


# The calls of packages that run on a GPU: functions of their signatures stand in.


def _liger(lin_weight: Tensor, _input: Tensor, target: Tensor) -> Tensor:
    return cross_entropy(_input @ lin_weight.T, target)


def _cut(e: Tensor, c: Tensor, targets: Tensor, filter_eps: object = "high") -> Tensor:
    assert e.is_contiguous()
    return cross_entropy(e @ c.T, targets)


def _inf(
    q: Tensor, k: Tensor, labels: Any = None, scale: Any = None, head_dim: int = 256
) -> Tensor:
    assert scale is None  # its gradient wants a process group
    heads = [x.view(len(x), -1, head_dim) for x in (q, k)]
    return cross_entropy(torch.einsum("nhd,mhd->nm", *heads), labels)


def _siglip(img: Tensor, txt: Tensor, log_temperature: Tensor, bias: Tensor) -> Tensor:
    z = img @ txt.T * log_temperature.exp() + bias
    labels = 2 * torch.eye(len(img), dtype=z.dtype) - 1
    return -logsigmoid(labels * z).sum() / len(img)


@pytest.mark.parametrize(
    ("name", "module", "content"),
    [
        ("liger", "liger_kernel.transformers",
         {"LigerFusedLinearCrossEntropyLoss": lambda: _liger}),
        ("cut_cross_entropy", "cut_cross_entropy", {"linear_cross_entropy": _cut}),
        ("cut_cross_entropy_exact", "cut_cross_entropy", {"linear_cross_entropy": _cut}),
        ("inf_cl", "inf_cl", {"cal_inf_loss": _inf}),
        ("siglip_kernel", "siglip_kernel", {"fused_siglip_loss": _siglip}),
    ],
)  # fmt: skip
def test_calls_of_gpu_packages(
    suite: Any, alternatives: Any, monkeypatch: pytest.MonkeyPatch,
    name: str, module: str, content: dict[str, Any],
) -> None:  # fmt: skip
    for package in (module.partition(".")[0], module):
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    for key, value in content.items():
        setattr(sys.modules[module], key, value)
    for loss in alternatives.PROVIDERS[name].losses:
        assert suite.check(case_of(suite, loss), [name]) == {}


# What is written.


def test_json(suite: Any, tmp_path: Path) -> None:
    shapes = [Shape(16, 16, 8), Shape(24, 24, 8)]
    kinds, wanted = ["forward", "step"], ["grainrank", "dense", "chunked"]
    case = case_of(suite, "multi_level")
    found = measured(suite, tmp_path, case, shapes=shapes, kinds=kinds, wanted=wanted)
    assert (found["command"], found["loss"], found["levels"]) == ("suite", "multi_level", 3)
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert [(x["n"], x["m"], x["dim"], x["flops_of_products"]) for x in found["shapes"]] == [
        (n, n, 8, 6 * n * n * 8) for n in (16, 24)
    ]
    for shape in found["shapes"]:
        providers = shape["providers"]
        assert list(providers) == ["grainrank", "dense", "chunked", "products"]
        assert set(found["labels"]) == set(providers)
        for kind in ("forward", "step"):
            for x in providers.values():
                seconds = x[kind]["seconds"]
                assert len(seconds) == 2
                assert x[kind]["median_seconds"] == statistics.median(seconds)
                for base in ("grainrank", "products"):
                    ratios = [a / b for a, b in zip(seconds, providers[base][kind]["seconds"],
                                                    strict=True)]  # fmt: skip
                    assert x[kind][f"of_{base}"] == pytest.approx(statistics.median(ratios))


def test_a_step_of_an_encoder(suite: Any, tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs pip install '.[st]'")
    found = measured(suite, tmp_path, case_of(suite, "clip"), encoders=[SMALL], kinds=["encoder"])
    assert found["shapes"] == []
    (shape,) = found["encoder"]
    assert (shape["n"], shape["dim"]) == (SMALL.N, SMALL.D)
    for x in shape["providers"].values():
        assert len(x["step"]["seconds"]) == len(x["loss_seconds"]) == 2
        assert 0 < x["loss_share"] < 1


def test_an_encoders_step_is_that_of_autograd(suite: Any) -> None:
    """The loss on detached embeddings, and their gradients, are the loss on the encoder's."""
    pytest.importorskip("transformers", reason="needs pip install '.[st]'")
    runs = importlib.import_module("suite_runs")
    step = runs.EncoderStep("dense", case_of(suite, "clip"), SMALL)
    step.encoder.eval()  # no dropout
    step.loss(
        Inputs(*(step.encoder(texts) for texts in step.texts), *step.keys), step.scale
    ).backward()
    expected = [p.grad.clone() for p in step.encoder.parameters() if p.grad is not None]
    step.optimizer.zero_grad()
    seen: list[Tensor] = []
    step.optimizer.step = lambda: seen.extend(
        p.grad.clone() for p in step.encoder.parameters() if p.grad is not None
    )
    step()
    assert len(expected) > 10
    torch.testing.assert_close(seen, expected)


# What cannot run.


def test_what_is_not_installed_is_recorded(
    suite: Any, alternatives: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = importlib.util.find_spec
    hidden = ("open_clip", "sentence_transformers")
    monkeypatch.setattr(
        alternatives.importlib.util, "find_spec", lambda x: None if x in hidden else there(x)
    )
    monkeypatch.setattr(alternatives, "_has_linear_cross_entropy", lambda: False)
    wanted = ["grainrank", "dense", "linear_cross_entropy", "open_clip",
              "sentence_transformers_cached"]  # fmt: skip
    found = measured(suite, tmp_path, case_of(suite, "clip"), wanted=wanted)
    assert found["left_out"] == {
        "linear_cross_entropy": f"not in torch {torch.__version__}: pip install 'torch>=2.13'",
        "sentence_transformers_cached": "not installed: pip install sentence-transformers",
        "open_clip": "not installed: pip install --no-deps open_clip_torch",
    }
    assert list(found["shapes"][0]["providers"]) == ["grainrank", "dense", "products"]


def test_gpu_packages_are_named_on_a_gpu_only(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda x: None if x in (*GPU_PACKAGES, "liger_kernel") else there(x),
    )
    for loss in ("info_nce", "siglip"):
        case = case_of(suite, loss, torch.bfloat16)
        assert not set(GPU_PACKAGES) & {*suite.providers_of(case)[0], *suite.providers_of(case)[1]}
        setting = case.setting._replace(device=CUDA)
        _, left_out = suite.providers_of(case._replace(setting=setting))
        mine = [x for x in GPU_PACKAGES if (x == "siglip_kernel") == (loss == "siglip")]
        for name in mine:
            assert left_out[name] == f"not installed: pip install {GPU_PACKAGES[name]}"


def test_a_dtype_that_a_kernel_does_not_take(suite: Any, alternatives: Any) -> None:
    provider = alternatives.PROVIDERS["cut_cross_entropy"]._replace(package=None)
    case = case_of(suite, "clip")
    assert alternatives.missing(provider, case) == "takes bfloat16 and float16 only"
    assert alternatives.missing(provider, case_of(suite, "clip", torch.float16)) == "needs a GPU"


def test_what_is_too_slow_is_not_tried_on_larger_shapes(suite: Any, tmp_path: Path) -> None:
    shapes = [Shape(16, 16, 8), Shape(24, 24, 8), Shape(16, 16, 4)]
    limits = suite.Limits(None, 0.0, 1)
    found = measured(suite, tmp_path, case_of(suite, "clip"), shapes=shapes, limits=limits)
    first, second, narrow = (x["providers"] for x in found["shapes"])
    assert "step" in first["dense"]
    assert second["dense"]["skipped"].startswith("took ")
    assert second["dense"]["skipped"].endswith(" s at N 16, D 8, more than the limit of 0 s")
    assert "step" in second["grainrank"]
    assert "step" in second["products"]
    assert "step" in narrow["dense"]


def test_what_fails_is_skipped_and_the_others_go_on(
    suite: Any, alternatives: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = alternatives.PROVIDERS["dense"]
    errors = {70: MemoryError(), 16: RuntimeError("no kernel\nat all")}

    def failing(case: Any) -> Any:
        def loss(inputs: Inputs, scale: Tensor) -> Tensor:
            if not scale.requires_grad:  # it is not checked
                raise errors[len(inputs.queries)]
            return right.make(case)(inputs, scale)

        return loss

    monkeypatch.setitem(alternatives.PROVIDERS, "dense", right._replace(make=failing))
    shapes = [Shape(16, 16, 8), SMALL]
    found = measured(suite, tmp_path, case_of(suite, "clip"), shapes=shapes)
    assert found["shapes"][0]["providers"]["dense"] == {"skipped": "no kernel"}
    assert found["shapes"][1]["providers"]["dense"] == {"skipped": "out of memory"}
    assert "step" in found["shapes"][1]["providers"]["grainrank"]


@needs_proc
def test_what_exceeds_the_limit_is_out_of_memory(
    suite: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Peaks of others are measured as ever."""
    monkeypatch.setattr(suite, "can_measure", lambda: True)
    n, matrix = 2048, 4 * 2048 * 2048
    case = suite.Case("clip", Setting(torch.float32, CPU), "cpu")
    limits = suite.Limits(3 * matrix, 60.0, 1)
    measuring = suite.Suite(case, ["dense"], ["memory"], limits)
    found = measuring.measure(Shape(n, n, 8))["providers"]
    assert found["dense"] == {"skipped": "out of memory"}
    assert list(found["products"]) == ["peak_bytes"]
    assert 0.9 * matrix <= found["products"]["peak_bytes"] <= 2 * matrix


def _takes(size: int) -> int:
    memory.limit_memory(2**26)
    return torch.zeros(size, dtype=torch.uint8).numel()


@needs_proc
def test_memory_over_the_limit_is_refused() -> None:
    assert memory.peak_apart(_takes, 2**24) == 2**24
    with pytest.raises(MemoryError, match="allocate memory"):
        memory.peak_apart(_takes, 2**27)


def test_which_errors_are_of_memory() -> None:
    refused = "[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory"
    for error in (MemoryError(), torch.OutOfMemoryError(), RuntimeError(refused)):
        assert memory.ran_out(error)
    for other in (RuntimeError("no kernel"), ValueError("out of memory")):
        assert not memory.ran_out(other)


def test_command_line(
    suite: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "suite.json"
    small = [
        "--n",
        "24",
        "16",
        "--d",
        "8",
        "--loss",
        "info_nce",
        "--rounds",
        "1",
        "--kinds",
        "step",
    ]
    monkeypatch.setattr(suite, "can_measure", lambda: True)
    monkeypatch.setattr(suite, "peak_apart", lambda work, *given: 7)
    arguments = [*small, "--providers", "chunked", "--memory-limit-gb", "0.5", "--out", str(out)]
    assert suite.main(arguments) == 0
    assert capsys.readouterr() == (f"Written to {out}\n", "")
    found = json.loads(out.read_text())
    assert [x["n"] for x in found["shapes"]] == [16, 24]
    assert list(found["shapes"][0]["providers"]) == ["grainrank", "chunked", "products"]
    assert (found["memory_limit_bytes"], found["rounds"]) == (2**29, 1)
    assert found["shapes"][0]["providers"]["chunked"]["peak_bytes"] == 7
    assert found["busy_processes"] == 0


def test_busy_cores(suite: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of their own, which end with the measurement."""
    started: list[subprocess.Popen[bytes]] = []

    class Noted(subprocess.Popen):  # type: ignore[type-arg]
        def __init__(self, command: list[str]) -> None:
            super().__init__(command)
            started.append(self)

    monkeypatch.setattr(suite.subprocess, "Popen", Noted)
    with suite.busy(2):
        assert [process.poll() for process in started] == [None, None]
    assert all(process.returncode is not None for process in started)


def test_without_a_gpu(
    suite: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu = importlib.import_module("gpu")
    with pytest.raises(SystemExit) as stopped:
        gpu.main([])
    assert stopped.value.code == 2
    assert "PyTorch sees no GPU" in capsys.readouterr().err


# The benchmarks of a single question run on the same definitions.


def test_providers_of_the_single_benchmarks(
    alternatives: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    directions = importlib.import_module("bench_directions")
    providers = importlib.import_module("providers")
    monkeypatch.setattr(directions, "D", 24)
    monkeypatch.setattr(providers, "PREFIXES", (8, 24))
    directions.agree(providers.symmetric, directions.both_directions)
    directions.agree(providers.matryoshka, providers.eager_matryoshka)
    directions.agree(providers.fused, providers.reference)
    importlib.import_module("bench_step").check(providers.make(50, 70, 24))
