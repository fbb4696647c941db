"""What the compiler makes of the kernels, run on the simulator of ptxsim: no GPU is needed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from ptxsim.build import compiler


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "/tests/compiled/" in str(item.path):
            item.add_marker(pytest.mark.compiled)
            if compiler() is None:
                item.add_marker(pytest.mark.skip("the simulator needs g++"))


@pytest.fixture(autouse=True, scope="session")
def private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Kernels are compiled anew: nothing of an earlier run is tested."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield
