"""The backends "triton" and "cuda" on the GPU that is there: `pytest -m gpu`.

`pytest -m gpu --gpu sm_80` (sm_86, sm_89, sm_90) runs the same tests on the simulator of ptxsim, to
try the tests themselves.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/gpu/" in str(item.path):
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(autouse=True)
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    """Where the tensors of the test lie."""
    simulated = request.config.getoption("gpu")
    if not simulated and not torch.cuda.is_available():
        pytest.skip("PyTorch sees no GPU")
    if not simulated:
        yield torch.device("cuda")
        return
    from compiled import simulated_cuda
    from ptxsim.driver import use

    capability = int(simulated.removeprefix("sm_"))
    with use(capability), simulated_cuda.simulated(capability):
        yield torch.device("cpu")


@pytest.fixture
def real(device: torch.device) -> None:
    """The test needs more than the simulator has."""
    if device.type == "cpu":
        pytest.skip("needs a GPU, not the simulator")


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.fp32_precision = matmul.fp32_precision, "ieee"
    yield
    matmul.fp32_precision = before
