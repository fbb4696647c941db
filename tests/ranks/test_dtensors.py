"""DTensors: the gradients of one loss that all ranks compute together; what cannot be one is
refused.
"""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
import torch
from ranks import dtensors, processes
from ranks.dtensors import WORLD, Case

CASES = [
    *(
        Case(mesh, shape, transport=transport, direction=direction)
        for mesh in ("line", "rows")
        for shape in ("even", "uneven")
        for transport, direction in (
            ("gather", "query_to_candidate"),
            ("gather", "symmetric"),
            ("ring", "candidate_to_query"),
        )
    ),
    Case("columns"),
    Case("columns", candidates="replicate", direction="symmetric"),
    Case(shape="few"),
    Case(shape="few", transport="ring", direction="symmetric"),
    Case(candidates="replicate"),
    Case(candidates="replicate", transport="ring", direction="symmetric"),
    Case("rows", candidates="replicate", keys="replicated"),
    Case(candidates="both"),
    Case(keys="replicated"),
    Case(keys="plain", temperature="plain"),
    Case("rows", keys="plain", temperature="number"),
    Case("rows", temperature="plain"),
    Case(loss="gist"),
    Case(loss="bands"),
    Case(loss="excluded", candidates="replicate"),
    Case("rows", loss="siglip"),
    Case(loss="rows"),
    Case("rows", loss="rows", transport="ring"),
]
REFUSED = {
    "shard-1": "ValueError: candidates must be sharded on the batch",
    "partial": "ValueError: candidates must be sharded on the batch",
    "beside-plain-candidates": "ValueError: candidates must be a DTensor",
    "beside-plain-queries": "ValueError: queries must be a DTensor",
    "keys-beside-plain": "ValueError: queries must be a DTensor",
    "keys-on-another-mesh": "ValueError: levels must be on the mesh of queries",
    "temperature-sharded": "ValueError: temperature must be replicated",
    "two-meshes": "ValueError: candidates must be on the mesh of queries",
    "meshes-of-other-shape": "ValueError: candidates must be on the mesh of queries",
    "two-dimensions-at-once": "ValueError: queries .* one dimension of their mesh",
    "a-dimension-each": "ValueError: queries .* one dimension of their mesh",
    "features-on-the-other": "ValueError: .* redistribute",
    "replicated-on-two": "ValueError: queries .* one dimension of their mesh",
    "another-group": "ValueError: group must be that of the mesh",
    "dense-levels": "ValueError: levels",
    "two-dimensional-group": r'ValueError: group must be a DeviceMesh .* pass mesh\["batch"\]',
}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("dtensors")
    timeout = datetime.timedelta(seconds=20)
    return processes.run(WORLD, dtensors.on_rank, folder, CASES, timeout=timeout)


@pytest.mark.parametrize("i", range(len(CASES)), ids=[case.id for case in CASES])
def test_equals_one_process(i: int, results: list[Any]) -> None:
    expected = dtensors.on_one_process(CASES[i])
    of_ranks = [results[i] for results, _, _ in results]
    for actual in of_ranks:
        assert isinstance(actual, dict), actual
        assert actual.keys() == expected.keys()
        for name, value in expected.items():
            assert torch.equal(actual[name], of_ranks[0][name])
            torch.testing.assert_close(actual[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mesh", ["line", "batch"])
def test_a_mesh_as_group(mesh: str, results: list[Any]) -> None:
    expected = dtensors.on_one_process(Case(shape="even"))
    of_ranks = [found[mesh] for _, found, _ in results]
    parts = of_ranks if mesh == "line" else of_ranks[::2]
    for name, value in expected.items():
        if name in ("d_queries", "d_candidates"):
            together = torch.cat([part[name] for part in parts])
            torch.testing.assert_close(together, value, rtol=1e-10, atol=1e-12)
            continue
        for of_rank in of_ranks:
            torch.testing.assert_close(of_rank[name], value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, results: list[Any]) -> None:
    for _, _, refused in results:
        assert re.match(REFUSED[name], refused[name]), refused[name]
