"""Training on several processes is training on one: DDP, FSDP2 and Accelerate, in every form of a
step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import processes, training
from ranks.training import Case

from grainrank.testing import Draw, assert_accurate

DRAWS, STEPS = 8, 10
_DIRECTIONS = ("query_to_candidate", "candidate_to_query", "symmetric")
_WAYS = ("accumulated", "checkpointed", "module", "grad-cache")


def _cases(world: int) -> list[Case]:
    if world == 4:
        return [Case("ddp", layout=layout) for layout in ("even", "empty")]
    both = "gather", "ring"
    wrappers = "ddp", "fsdp"
    layouts = ("even",) if world == 2 else ("uneven", "empty")
    found = [
        Case(wrapper, "plain", layout, transport, direction)
        for wrapper in wrappers
        for layout in layouts
        for transport in both
        for direction in _DIRECTIONS
        # FSDP2 takes three times as long.
        if wrapper == "ddp" or world == 2 or (layout, transport) in zip(layouts, both, strict=True)
    ]
    # A scalar parameter, which FSDP2 does not take.
    found.append(Case("ddp", "inside", layouts[-1]))
    if world == 3:
        forms = list(zip(both, ("query_to_candidate", "symmetric"), strict=True))
        for i, way in enumerate(_WAYS):
            for j, wrapper in enumerate(wrappers):
                found.append(Case(wrapper, way, "empty", *forms[(i + j) % 2]))
        if training.has_accelerate():
            found += [Case("accelerate", transport=transport) for transport in both]
    return found


def _trainings(world: int) -> list[Case]:
    if world == 4:
        return []
    layout = "uneven" if world == 2 else "empty"
    return [
        Case("ddp", "plain", layout, "gather"),
        Case("ddp", "plain", layout, "ring", "symmetric"),
        Case("ddp", "module", layout, "gather", "symmetric"),
        Case("fsdp", "plain", layout, "gather"),
    ]


def _parameters(cases: Any) -> list[Any]:
    return [
        pytest.param(world, i, id=f"W{world}-{case.id}")
        for world in (2, 3, 4)
        for i, case in enumerate(cases(world))
    ]


@functools.cache
def _launch(world: int, folder: Path) -> list[Any] | Exception:
    """Of the ranks of one launch; one that fails is not repeated for each test."""
    try:
        given = _cases(world), DRAWS, _trainings(world), STEPS
        return processes.run(world, training.on_rank, folder / str(world), *given)
    except Exception as error:
        return error


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], list[Any]]:
    folder = tmp_path_factory.mktemp("training")

    def results(world: int) -> list[Any]:
        found = _launch(world, folder)
        if isinstance(found, Exception):
            raise found
        return found

    return results


def _same_on_every_rank(of_ranks: list[training.Results]) -> training.Results:
    for other in of_ranks[1:]:
        assert other.keys() == of_ranks[0].keys()
        for name, value in other.items():
            assert torch.equal(value, of_ranks[0][name]), name
    return of_ranks[0]


@pytest.mark.parametrize(("world", "i"), _parameters(_cases))
def test_gradients_are_those_of_one_process(
    world: int, i: int, launched: Callable[[int], list[Any]]
) -> None:
    case = _cases(world)[i]
    of_ranks = [gradients[i] for gradients, _ in launched(world)]
    actual = [_same_on_every_rank(list(draw)) for draw in zip(*of_ranks, strict=True)]
    reference, truth = (
        training.gradients_on_one_process(case, world, DRAWS, dtype)
        for dtype in (torch.float32, torch.float64)
    )
    assert actual[0].keys() == truth[0].keys()
    for name in truth[0]:
        draws = [
            Draw(*(result[name] for result in of_draw))
            for of_draw in zip(actual, reference, truth, strict=True)
        ]
        assert_accurate(f"{case.id} {name}", *draws)


@pytest.mark.parametrize(("world", "i"), _parameters(_trainings))
def test_ten_steps_are_those_of_one_process(
    world: int, i: int, launched: Callable[[int], list[Any]]
) -> None:
    actual = _same_on_every_rank([trained[i] for _, trained in launched(world)])
    expected = training.trained_on_one_process(_trainings(world)[i], world, STEPS)
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-9, atol=1e-12, msg=name)


def test_accelerate_is_there() -> None:
    if not training.has_accelerate():
        pytest.skip("accelerate is not installed: its cases did not run")
