"""Each CUDA pass reads the logits once and writes a gradient once, within cuda_budget.json.

The budget is what the passes took when it was last written: a change that makes one dearer shows
here, and is either mended or seen in the difference of the file.
"""

from __future__ import annotations

import shutil
from typing import Any

import pytest
from compiled.cuda_budget import NOT_BUILT, REFRESH, occupancies, read
from compiled.cuda_code import ARCHITECTURES, Code, built_module, code_of, nvcc_version, occupancy
from compiled.cuda_forms import FORMS, SHAPE, Cost, measure

MORE_INSTRUCTIONS = 0.1  # than the budget's, of each kernel
ITEM = {"fp32": 4.0, "bf16": 2.0}  # bytes of an element of the gradient
Codes = dict[str, dict[str, Code]]

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not on the PATH")
each_architecture = pytest.mark.parametrize("architecture", list(ARCHITECTURES))


def check(wrong: list[str]) -> None:
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.fixture(scope="module")
def costs() -> dict[str, Cost]:
    return {name: measure(form) for name, form in FORMS.items()}


@pytest.fixture(scope="module")
def codes() -> Codes:
    module = built_module()
    assert module is not None, NOT_BUILT
    return code_of(module)


@pytest.fixture
def code(codes: Codes, architecture: str) -> dict[str, Code]:
    if architecture not in codes:
        pytest.skip(f"grainrank._cuda was built without {architecture}")
    return codes[architecture]


@pytest.fixture(scope="module")
def budget() -> dict[str, Any]:
    """What another compiler makes of the kernels is not to be compared with it."""
    whole = read()
    if whole["nvcc"] != nvcc_version():
        pytest.skip(f"cuda_budget.json is of nvcc {whole['nvcc']}, this is {nvcc_version()}")
    return whole


# ---- the promise, whatever the budget says
def test_each_pass_reads_the_logits_once(costs: dict[str, Cost]) -> None:
    passes = [name for name, form in FORMS.items() if form.elements == SHAPE.N * SHAPE.M]
    assert len(passes) > 10
    check(
        [
            f"{name} reads {costs[name].bytes.get('logits read', 0.0)} bytes of logits for each "
            f"pair; one read is {FORMS[name].logits}"
            for name in passes
            if costs[name].bytes.get("logits read", 0.0) != FORMS[name].logits
        ]
    )


def test_each_gradient_is_written_once(costs: dict[str, Cost]) -> None:
    wrong = []
    for name, form in FORMS.items():
        touched = costs[name].bytes
        in_place = form.writes and form.dtype == "fp32"
        expected = {
            "logits written": ITEM["fp32"] if in_place else 0.0,
            "gradient written": ITEM[form.dtype] if form.writes and not in_place else 0.0,
            "gradient read": 0.0,
        }
        wrong += [
            f"{name}: {touched.get(what, 0.0)} bytes of {what} for each pair, not {count}"
            for what, count in expected.items()
            if touched.get(what, 0.0) != count
        ]
    check(wrong)


@each_architecture
def test_nothing_spills(architecture: str, code: dict[str, Code]) -> None:
    check(
        [
            f"{name} on {architecture} has {of.stack} bytes of stack, with {of.registers} "
            f"registers; allowed 0"
            for name, of in code.items()
            if of.stack > 0
        ]
    )


# ---- the budget
def test_budget_has_every_kernel_and_no_other(
    costs: dict[str, Cost], codes: Codes, budget: Any
) -> None:
    found = {f"{kernel} in {name}" for name, cost in costs.items() for kernel in cost.kernels}
    given = {
        f"{kernel} in {n}" for n, cost in budget["passes"].items() for kernel in cost["kernels"]
    }
    for architecture in codes.keys() & budget["code"].keys():
        found |= {f"{kernel} on {architecture}" for kernel in codes[architecture]}
        given |= {f"{kernel} on {architecture}" for kernel in budget["code"][architecture]}
    check(
        [f"{n} has no budget; to give it one: {REFRESH}" for n in sorted(found - given)]
        + [f"{n} is in the budget alone; to remove it: {REFRESH}" for n in sorted(given - found)]
    )


def test_bytes(costs: dict[str, Cost], budget: Any) -> None:
    wrong = []
    for name, cost in costs.items():
        given = budget["passes"].get(name, {"bytes": {}})["bytes"]
        wrong += [
            f"{name}: {what} {cost.bytes.get(what, 0.0)} bytes for each element, the budget has "
            f"{given.get(what, 0.0)}; to change it: {REFRESH}"
            for what in sorted(cost.bytes.keys() | given.keys())
            if cost.bytes.get(what, 0.0) != given.get(what, 0.0)
        ]
    check(wrong)


def test_instructions(costs: dict[str, Cost], budget: Any) -> None:
    wrong = []
    for name, cost in costs.items():
        kernels = budget["passes"].get(name, {"kernels": {}})["kernels"]
        for kernel in cost.kernels.keys() & kernels.keys():
            got = cost.kernels[kernel].instructions
            given = kernels[kernel]["instructions"]
            if got > (1 + MORE_INSTRUCTIONS) * given:
                wrong.append(
                    f"{name}: {kernel} executes {got} instructions for each element, allowed "
                    f"{given} + {MORE_INSTRUCTIONS:.0%}; to allow them: {REFRESH}"
                )
    check(wrong)


@each_architecture
def test_registers_and_static_shared_memory(
    architecture: str, code: dict[str, Code], budget: Any
) -> None:
    given = budget["code"][architecture]
    check(
        [
            f"{name} on {architecture}: {what} {getattr(of, what)}, allowed {given[name][what]}; "
            f"to allow them: {REFRESH}"
            for name, of in code.items()
            for what in ("registers", "shared")
            if name in given and getattr(of, what) > given[name][what]
        ]
    )


@each_architecture
def test_occupancy(
    architecture: str, code: dict[str, Code], costs: dict[str, Cost], budget: Any
) -> None:
    wrong = []
    for kernel in code.keys() & budget["code"][architecture].keys():
        given = budget["code"][architecture][kernel]["occupancy"]
        for name, got in occupancies(architecture, kernel, code[kernel], costs).items():
            if got < given.get(name, 0.0):
                launched = costs[name].kernels[kernel]
                wrong.append(
                    f"{kernel} on {architecture} in {name}: occupancy {got:.0%}, allowed "
                    f"{given[name]:.0%} or more, with {code[kernel].registers} registers, "
                    f"{launched.threads} threads and {launched.dynamic_shared} bytes of shared "
                    f"memory; to allow it: {REFRESH}"
                )
    check(wrong)


@pytest.mark.parametrize(
    ("architecture", "registers", "threads", "shared", "warps"),
    [
        ("sm_75", 40, 128, 0, 32),  # all there are
        ("sm_75", 72, 128, 32 << 10, 2 * 4),  # shared memory, of which no block has any reserved
        ("sm_80", 128, 256, 0, 2 * 8),  # registers
        ("sm_80", 33, 128, 0, 12 * 4),  # counted as 40
        ("sm_80", 16, 32, 0, 32),  # blocks
        ("sm_86", 40, 128, 49 << 10, 2 * 4),  # shared memory: 50 KB each
        ("sm_86", 40, 128, (49 << 10) + 1, 4),
        ("sm_90", 255, 256, 0, 8),
    ],
)
def test_occupancy_of_known_blocks(
    architecture: str, registers: int, threads: int, shared: int, warps: int
) -> None:
    code = Code(registers, 0, shared // 2)
    got = occupancy(architecture, code, threads, shared - shared // 2)
    assert got == warps / ARCHITECTURES[architecture].warps
