"""The rule of accuracy for every loss as users call it: value and gradients against float64."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from test_losses import CASES
from three_ways import Results, judge

import grainrank
from grainrank import GrainKeys
from grainrank.testing import DTYPES, Inputs, Shape, make_inputs

SHAPE = Shape(33, 65, 24, 3)  # K = L of the options in CASES
DRAWS = 5
LOSSES: dict[str, tuple[Any, dict[str, Any]]] = {name: case[:2] for name, case in CASES.items()}
LOSSES["siglip"] = (grainrank.siglip_loss, {"logit_scale": 3.0, "logit_bias": -1.2})
LOSSES["multi_level"] = (grainrank.multi_level_ranking_loss, {"temperature": 0.2})
LOSSES["multi_level-temperatures"] = (
    grainrank.multi_level_ranking_loss,
    {"level_temperatures": [0.5, 0.4, 0.2]},
)
WAYS: dict[str, dict[str, Any]] = {
    "rows": {},
    "columns": {"direction": "candidate_to_query"},
    "symmetric": {"direction": "symmetric"},
    "joint": {"direction": "joint"},
    "prefixes": {"matryoshka_dims": (5, 12, 24)},
    "dot": {"normalize": False},
}
# Each loss in the rows' direction, and the losses that differ in how they run in every other.
THRESHOLDED = ("unique_softmax", "rince-out-temperatures")  # by a second pass; no joint form
PAIRS = [(name, "rows") for name in LOSSES]
PAIRS += [(name, way) for name in ("info_nce", "multi_level", "sup_con") for way in WAYS]
PAIRS += [(name, way) for name in THRESHOLDED for way in WAYS if way != "joint"]
PAIRS += [("siglip", way) for way in ("columns", "prefixes", "dot")]
PAIRS = list(dict.fromkeys(PAIRS))
# In float64 the truth would need the definition in more digits: see test_accuracy_loss.py.
NARROW = {name: dtype for name, dtype in DTYPES.items() if name != "fp64"}


def step(name: str, way: str, inputs: Inputs, backend: str, **more: Any) -> Results:
    loss, options = LOSSES[name]
    if way == "dot":  # similarities of the size of a cosine
        inputs = inputs._replace(queries=inputs.queries / 8, candidates=inputs.candidates / 8)
    q, c = (x.clone().requires_grad_() for x in inputs[:2])
    levels = GrainKeys(inputs.query_keys, inputs.candidate_keys)
    value = loss(q, c, levels, backend=backend, **options, **WAYS[way], **more)
    d_queries, d_candidates = torch.autograd.grad(value, [q, c], 1.5 * torch.ones_like(value))
    return {"loss": value.detach(), "d_queries": d_queries, "d_candidates": d_candidates}


@functools.lru_cache(maxsize=8)
def evidence(
    name: str, way: str, dtype: torch.dtype, shape: Shape = SHAPE, draws: int = DRAWS
) -> Any:
    inputs = [make_inputs(shape, dtype, seed=seed) for seed in range(draws)]
    reference = [step(name, way, x, "reference") for x in inputs]
    exact = [step(name, way, x.to(torch.float64), "reference") for x in inputs]
    return inputs, reference, [{k: (v, None) for k, v in e.items()} for e in exact]


@pytest.mark.parametrize(("name", "way"), PAIRS)
@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW.keys())
def test_loss(name: str, way: str, dtype: torch.dtype, instruction_set: str) -> None:
    inputs, reference, truth = evidence(name, way, dtype)
    actual = [step(name, way, x, "cpu") for x in inputs]
    for result in actual[0]:
        judge(result, actual, reference, truth)
