"""Every kernel, compiled for every GPU: without spills, on tensor cores, within budget.json.

The budget is what the kernels took when it was last written: a change that makes one dearer shows
here, and is either mended or seen in the difference of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
import triton
from compiled.budget import REFRESH, Measured, pool, read, started
from compiled.compile_only import TARGETS
from compiled.facts import Facts

# Bytes that a block may have.
SHARED = {
    "sm_80": 163 << 10, "sm_86": 99 << 10, "sm_89": 99 << 10, "sm_90": 227 << 10,
    "sm_100": 227 << 10, "sm_120": 99 << 10,
    "gfx90a": 64 << 10, "gfx942": 64 << 10, "gfx950": 160 << 10,
}  # fmt: skip
# How the tensor cores of a target are used at their full rate.
PRODUCT = {**dict.fromkeys(SHARED, "mma"), "sm_90": "wgmma", "sm_100": "tcgen05"}
PRODUCT |= dict.fromkeys(("gfx90a", "gfx942", "gfx950"), "mfma")
MORE_INSTRUCTIONS = 0.1  # than the budget's, of each class
Kernels = dict[str, Facts]
each_target = pytest.mark.parametrize("target", list(TARGETS))


@pytest.fixture(scope="module")
def running(request: pytest.FixtureRequest) -> Iterator[dict[str, Future[Measured]]]:
    """All targets that tests were selected for: two compile at a time."""
    here = [item for item in request.session.items if item.path == request.path]
    selected = {
        item.callspec.params["target"] for item in here if isinstance(item, pytest.Function)
    }
    workers = pool()
    yield started(workers, [target for target in TARGETS if target in selected])
    workers.shutdown(cancel_futures=True)


@pytest.fixture
def measured(running: dict[str, Future[Measured]], target: str) -> Measured:
    return running[target].result()


@pytest.fixture
def kernels(measured: Measured) -> Kernels:
    return measured.kernels


@pytest.fixture
def budget(target: str) -> dict[str, Any]:
    whole = read()
    assert whole["triton"] == triton.__version__, (
        f"budget.json is of Triton {whole['triton']}, this is {triton.__version__}: {REFRESH}"
    )
    entries: dict[str, Any] = whole["targets"][target]
    return entries


def check(wrong: list[str]) -> None:
    assert not wrong, "\n" + "\n".join(wrong)


@each_target
def test_everything_compiles(target: str, measured: Measured) -> None:
    check([f"{k} on {target} does not compile: {m}" for k, m in measured.failures.items()])


@each_target
def test_budget_has_every_kernel_and_no_other(target: str, kernels: Kernels, budget: Any) -> None:
    check(
        [
            f"{k} on {target} has no budget; to give it one: {REFRESH}"
            for k in kernels.keys() - budget.keys()
        ]
        + [
            f"{k} is in the budget of {target}, but is not compiled; to remove it: {REFRESH}"
            for k in budget.keys() - kernels.keys()
        ]
    )


@each_target
def test_nothing_spills(target: str, kernels: Kernels) -> None:
    check(
        [
            f"{k} on {target} spills: {f.stack} bytes of stack and {f.spills} spills, "
            f"with {f.registers} registers; allowed 0"
            for k, f in kernels.items()
            if f.stack or f.spills
        ]
    )


@each_target
@pytest.mark.parametrize("what", ["registers", "shared"])
def test_resources(target: str, what: str, kernels: Kernels, budget: Any) -> None:
    check(
        [
            f"{k} on {target}: {what} {getattr(f, what)}, allowed {budget[k][what]}"
            for k, f in kernels.items()
            if k in budget and getattr(f, what) > budget[k][what]
        ]
    )


@each_target
def test_shared_memory_is_there(target: str, kernels: Kernels) -> None:
    check(
        [
            f"{k} on {target}: shared {f.shared}, the GPU has {SHARED[target]}"
            for k, f in kernels.items()
            if f.shared > SHARED[target]
        ]
    )


@each_target
def test_instructions(target: str, kernels: Kernels, budget: Any) -> None:
    wrong = []
    for k in kernels.keys() & budget.keys():
        for kind, count in kernels[k].instructions.items():
            given = budget[k]["instructions"].get(kind, 0)
            if count > (1 + MORE_INSTRUCTIONS) * given:
                wrong.append(
                    f"{k} on {target}: {count} {kind} instructions, allowed {given} + "
                    f"{MORE_INSTRUCTIONS:.0%}; to allow them: {REFRESH}"
                )
    check(wrong)


def on_tensor_cores(facts: Facts) -> bool:
    """float32 is multiplied without, where tf32 is not allowed."""
    return facts.dot not in ("", "f32")


@each_target
def test_tensor_cores(target: str, kernels: Kernels) -> None:
    products = {k: f for k, f in kernels.items() if on_tensor_cores(f)}
    assert products
    check(
        [
            f"{k} on {target} multiplies {f.dot} with {f.products}, not with {PRODUCT[target]}"
            for k, f in products.items()
            if f.products[PRODUCT[target]] == 0
        ]
    )


@pytest.mark.parametrize("target", [target for target in TARGETS if target.startswith("sm_")])
def test_copies_are_asynchronous(target: str, kernels: Kernels) -> None:
    """Where the rows of the operands are aligned to 16 bytes."""
    products = {k: f for k, f in kernels.items() if f.dot and "-ragged/" not in k}
    assert products
    check(
        [
            f"{k} on {target} has no asynchronous copies, so its loads wait for one another"
            for k, f in products.items()
            if f.instructions["async copy"] == 0
        ]
    )
