"""What differs on one rank is an error on every rank, which names it; afterwards all go on."""

from __future__ import annotations

import datetime
import re
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import disagreement, processes
from ranks.disagreement import WORLD

import grainrank as gr

#: What is said on every rank, `odd` for the number of the odd one; and what the odd rank says of
#: errors that it finds itself.
SAID = {
    "features": "D, the features, must be the same on all ranks, got",
    "dtype": "the dtype must be the same on all ranks, got",
    "requires-grad-queries": "requires_grad of queries must be the same on all ranks, got",
    "requires-grad-candidates": "requires_grad of candidates must be the same on all ranks, got",
    "no-grad": r"is_grad_enabled\(\) must be the same on all ranks, got",
    "no-grad-of-temperature": r"is_grad_enabled\(\) must be the same on all ranks, got",
    "temperature-learned": "temperature must be the same on all ranks, got",
    "temperature": "temperature must be the same on all ranks, got",
    "direction": "direction must be the same on all ranks, got",
    "reduction": "reduction must be the same on all ranks, got",
    "transport": "transport must be the same on all ranks, got",
    "normalize": "normalize must be the same on all ranks, got",
    "matryoshka": "matryoshka_dims must be the same on all ranks, got",
    "level-weights": "level_weights must be the same on all ranks, got",
    "level-weights-values": "level_weights must be the same on all ranks, got",
    "positives": "positives must be the same on all ranks, got",
    "loss": "the loss must be the same on all ranks, got",
    "max-level": "levels must be the same on all ranks, got .*pass max_level",
    "key-dtype": "the data of levels must be the same on all ranks, got .*int32.*",
    "number-of-keys": "levels must be the same on all ranks, got",
    "match": "levels must be the same on all ranks, got",
    "source": "levels must be the same on all ranks, got",
    "excluded": "levels must be the same on all ranks, got",
    "memory": "memory must be the same on all ranks, got",
    "columns": "a matrix of levels must have the columns of its rank.*got .* on rank odd",
    "columns-of-all": "a matrix of levels must have the columns of its rank",
    "rows-of-keys": "rank odd raised ValueError: query_keys must have N = ",
    "nan": "rank odd raised ValueError: queries must be finite",
    "unknown-option": "rank odd raised TypeError: this loss has no option",
    "value": "must be|rank odd raised",
    "empty": "queries must have at least one row on some rank",
    "empty-candidates": "candidates must have at least one row on some rank",
}
_OWN = {
    "rows-of-keys": "ValueError: query_keys must have N = ",
    "nan": "ValueError: queries must be finite, got NaN or infinity in row",
    "unknown-option": "TypeError: this loss has no option 'sharpness'",
}
#: Nobody can say which rank is the odd one.
_OF_ALL = ("empty", "empty-candidates", "columns-of-all")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("disagreement")
    timeout = datetime.timedelta(seconds=15)
    return processes.run(WORLD, disagreement.on_rank, folder, timeout=timeout)


@pytest.mark.parametrize("odd", range(WORLD), ids=lambda odd: f"rank{odd}")
@pytest.mark.parametrize("name", disagreement.SCENARIOS)
def test_every_rank_names_the_odd_one(name: str, odd: int, results: list[Any]) -> None:
    for rank, (said, _, _) in enumerate(results):
        text, _ = said[name, odd]
        expected = SAID[name].replace("rank odd", f"rank {odd}")
        if rank == odd and name in _OWN:
            expected = _OWN[name]
        assert re.search(expected, text), text
        if name not in _OF_ALL and not (rank == odd and name in _OWN):
            assert f"rank {odd}" in text


@pytest.mark.parametrize("name", disagreement.SCENARIOS)
def test_the_group_works_afterwards(name: str, results: list[Any]) -> None:
    loss, d_candidates = disagreement.proof_of_one_process()
    for rank, (said, _, _) in enumerate(results):
        for odd in range(WORLD):
            _, proof = said[name, odd]
            expected = torch.stack([loss, d_candidates[rank]])
            torch.testing.assert_close(proof, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", disagreement.AGREEMENTS)
def test_no_disagreement(name: str, results: list[Any]) -> None:
    texts = [agreed[name] for _, agreed, _ in results]
    assert re.fullmatch(r"loss \d+\.\d+", texts[0]), texts[0]
    assert texts == texts[:1] * WORLD


def test_groups(results: list[Any]) -> None:
    of_ranks = [groups for _, _, groups in results]
    for rank, said in enumerate(of_ranks):
        assert said["number"].startswith(
            "TypeError: group must be a torch.distributed.ProcessGroup"
        )
        assert said["alone"].startswith("loss ")
        if rank == 2:
            assert said["pair"].startswith("ValueError: group must contain this process")
    assert of_ranks[0]["pair"] == of_ranks[1]["pair"]
    assert of_ranks[0]["pair"].startswith("loss ")
    assert of_ranks[0]["pair"] != of_ranks[0]["alone"]


def test_group_without_processes() -> None:
    q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match=r"group needs torch\.distributed: call .*init_process"):
        gr.multi_level_ranking_loss(q, c, temperature=0.1, group="all")  # type: ignore[arg-type]


def test_world_in_a_single_process() -> None:
    q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
    assert dist.group.WORLD is None
    alone = gr.multi_level_ranking_loss(q, c, temperature=0.1)
    of_world = gr.multi_level_ranking_loss(q, c, temperature=0.1, group=dist.group.WORLD)
    assert torch.equal(of_world, alone)
