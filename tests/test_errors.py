"""Wrong input: the error names the argument, what was expected, what came, and the mend."""

# ruff: noqa: E501  (one case a line reads better)

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import grainrank
from grainrank import DenseLevels, GrainKeys, MultiLevelRankingLoss, multi_level_ranking_loss

Q = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
C = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
KEYS_Q = torch.zeros(4, 2, dtype=torch.int64)
KEYS_C = torch.zeros(6, 2, dtype=torch.int64)


def step(queries: Any = Q, candidates: Any = C, levels: Any = None, **options: Any) -> Any:
    if not {"temperature", "logit_scale"} & options.keys():
        options["temperature"] = 0.1
    return multi_level_ranking_loss(queries, candidates, levels, **options)


META = torch.empty(4, 2, dtype=torch.int64, device="meta")
WITH_NAN = Q.clone().index_fill_(0, torch.tensor([2]), torch.nan)

CASES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "queries are a list": ({"queries": [[1.0]]}, TypeError, "queries must be a torch.Tensor, got list"),
    "integer queries": ({"queries": Q.long()}, TypeError, "queries must be float16, .*int64"),
    "complex candidates": ({"candidates": C + 0j}, TypeError, "candidates must be .*complex64"),
    "one-dimensional": ({"queries": Q[0]}, ValueError, r"queries must have shape \[N, D\], got \(8,\)"),
    "three-dimensional": ({"candidates": C[None]}, ValueError, r"candidates .* got \(1, 6, 8\)"),
    "no rows": ({"queries": Q[:0]}, ValueError, r"queries .* at least one row .* got \(0, 8\); skip"),
    "no candidates": ({"candidates": C[:0]}, ValueError, r"candidates .* got \(0, 8\)"),
    "no features": ({"queries": Q[:, :0]}, ValueError, r"queries .* got \(4, 0\)"),
    "other features": ({"candidates": C[:, :5]}, ValueError, "candidates must have D = 8 .* got 5"),
    "other dtype": ({"candidates": C.double()}, TypeError, "dtype of queries, torch.float32, got"),
    "other device": (
        {"candidates": C.to("meta")}, ValueError, r"candidates is on meta, .*candidates\.to\(queries"
    ),
    "no scale": ({"temperature": None}, ValueError, "exactly one of temperature .* got neither"),
    "two scales": (
        {"temperature": 0.1, "logit_scale": 10.0}, ValueError, "exactly one .* got both"
    ),
    "zero temperature": ({"temperature": 0.0}, ValueError, "temperature must be positive .* got 0.0"),
    "negative scale": ({"logit_scale": -1}, ValueError, "logit_scale must be positive .* got -1"),
    "NaN temperature": ({"temperature": float("nan")}, ValueError, "temperature .* got nan"),
    "text temperature": ({"temperature": "0.1"}, TypeError, "temperature must be a number .* got str"),
    "boolean scale": ({"logit_scale": True}, TypeError, "logit_scale must be a number .* got bool"),
    "scale vector": (
        {"logit_scale": torch.ones(2)}, ValueError, r"logit_scale .* one element, got shape \(2,\)"
    ),
    "integer scale tensor": ({"logit_scale": torch.tensor(3)}, TypeError, "logit_scale .*int64"),
    "scale elsewhere": (
        {"logit_scale": torch.ones((), device="meta")}, ValueError, "logit_scale is on meta"
    ),
    "levels are a tensor": (
        {"levels": KEYS_Q}, TypeError, r"levels must be None or a level source, got Tensor; wrap"
    ),
    "diagonal of too few": (
        {"queries": C, "candidates": Q}, ValueError, "candidates .* N = 6 rows when levels is None .*got 4; pass levels=GrainKeys"
    ),
    "keys of other rows": (
        {"levels": GrainKeys(KEYS_C, KEYS_C)}, ValueError, "query_keys must have N = 4 rows.*got 6"
    ),
    "keys of other candidates": (
        {"levels": GrainKeys(KEYS_Q, KEYS_Q)}, ValueError, "candidate_keys must have M = 6 rows.*got 4"
    ),
    "keys elsewhere": ({"levels": GrainKeys(META, KEYS_C)}, ValueError, "query_keys is on meta"),
    "levels of another shape": (
        {"levels": DenseLevels(torch.ones(6, 4, dtype=torch.int8))},
        ValueError,
        r"levels must have shape \[N, M\] = \[4, 6\], got \(6, 4\)",
    ),
    "ids of other rows": (
        {"levels": GrainKeys(KEYS_Q, KEYS_C).exclude(torch.arange(5), torch.arange(6))},
        ValueError,
        "query_ids must have N = 4 rows.*got 5",
    ),
    "positives": ({"positives": "all"}, ValueError, "positives must be one of 'exact', .* got 'all'"),
    "negatives": ({"negatives": "all"}, ValueError, "negatives must be one of 'lower', .*got 'all'"),
    "reduction": ({"reduction": "batch"}, ValueError, "reduction must be one of 'mean'.*got 'batch'"),
    "nan policy": ({"nan": "omit"}, ValueError, "nan must be one of 'propagate', 'raise', got 'omit'"),
    "NaN in a row": (
        {"queries": WITH_NAN, "nan": "raise"}, ValueError, "queries must be finite, .* in row 2"
    ),
    "infinity in a row": (
        {"candidates": C.clone().index_fill_(0, torch.tensor([5]), torch.inf), "nan": "raise"},
        ValueError,
        "candidates must be finite, .* in row 5",
    ),
    "backend": ({"backend": "gpu"}, ValueError, "backend must be one of 'auto', .* got 'gpu'"),
    "cuda": (
        {"backend": "cuda"},
        ValueError,
        'backend="cuda" (needs tensors on an NVIDIA GPU, got queries on cpu|'
        'is not part of this installation .* reinstall grainrank with nvcc)',
    ),
    "cpu elsewhere": (
        {"queries": Q.to("meta"), "candidates": C.to("meta"), "backend": "cpu"},
        ValueError,
        'backend="cpu" needs CPU tensors, got queries on meta',
    ),
    "no workspace": ({"workspace_mb": 0}, ValueError, "workspace_mb must be positive .* got 0"),
    "text workspace": ({"workspace_mb": "64"}, TypeError, "workspace_mb must be a number, got str"),
    "workspace below a row": (
        {"workspace_mb": 1e-6}, ValueError, "workspace_mb must hold at least the logits of one row"
    ),
    "weights of other levels": (
        {"level_weights": [1.0, 1.0]}, ValueError, r"level_weights must have L = 1 numbers, coarse to fine, got shape \(2,\)"
    ),
    "weight tensor of other levels": (
        {"level_weights": torch.ones(1, 1)}, ValueError, r"level_weights .* got shape \(1, 1\)"
    ),
    "negative weight": ({"level_weights": [-1.0]}, ValueError, r"not negative, got \[-1\.0\]"),
    "infinite weight": ({"level_weights": [float("inf")]}, ValueError, r"finite .* got \[inf\]"),
    "text weights": ({"level_weights": "1"}, TypeError, "level_weights must be a sequence .* got str"),
    "weights of text": ({"level_weights": ["1"]}, TypeError, r"must hold numbers, got \['1'\]"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_loss_refuses(case: str) -> None:
    arguments, error, message = CASES[case]
    with pytest.raises(error, match=message):
        step(**arguments)


SOURCES: dict[str, tuple[Any, type[Exception], str]] = {
    "float keys": (lambda: GrainKeys(KEYS_Q.float(), KEYS_C), TypeError, "query_keys must hold integers"),
    "boolean keys": (lambda: GrainKeys(KEYS_Q, KEYS_C.bool()), TypeError, "candidate_keys .*torch.bool"),
    "keys are a list": (lambda: GrainKeys([[0]], KEYS_C), TypeError, "query_keys must be a torch.Tensor"),
    "flat keys": (
        lambda: GrainKeys(KEYS_Q[:, 0], KEYS_C),
        ValueError,
        r"query_keys must have shape \[N, K\], got \(4,\); pass query_keys\[:, None\]",
    ),
    "keys of other grains": (
        lambda: GrainKeys(KEYS_Q, KEYS_C[:, :1]), ValueError, "candidate_keys must have K = 2 columns.*got 1"
    ),
    "no grains": (lambda: GrainKeys(KEYS_Q[:, :0], KEYS_C[:, :0]), ValueError, "1 to 15 columns, got 0"),
    "sixteen grains": (
        lambda: GrainKeys(torch.zeros(4, 16).long(), torch.zeros(6, 16).long()), ValueError, "got 16"
    ),
    "match": (lambda: GrainKeys(KEYS_Q, KEYS_C, match="suffix"), ValueError, "match .* got 'suffix'"),
    "float levels": (lambda: DenseLevels(torch.ones(2, 2)), TypeError, "levels must hold integers"),
    "flat levels": (lambda: DenseLevels(torch.ones(2).long()), ValueError, r"\[N, M\], got \(2,\)"),
    "level 16": (lambda: DenseLevels(torch.tensor([[16]])), ValueError, r"in -1\.\.15, got 16\.\.16"),
    "level -2": (lambda: DenseLevels(torch.tensor([[-2, 1]])), ValueError, r"got -2\.\.1"),
    "max_level 0": (lambda: DenseLevels(torch.tensor([[0]]), 0), ValueError, r"max_level .* 1\.\.15, got 0"),
    "max_level 2.0": (lambda: DenseLevels(torch.tensor([[0]]), 2.0), TypeError, "int or None, got float"),
    "float ids": (
        lambda: GrainKeys(KEYS_Q, KEYS_C).exclude(torch.ones(4), torch.arange(6)), TypeError, "query_ids"
    ),
    "ids with columns": (
        lambda: GrainKeys(KEYS_Q, KEYS_C).exclude(torch.arange(4), KEYS_C), ValueError, "candidate_ids .*M"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SOURCES)
def test_a_source_refuses(case: str) -> None:
    make, error, message = SOURCES[case]
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64])
@pytest.mark.parametrize("wrong", [-2, 3, 120])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_level_above_max_level_is_found(
    backend: str, dtype: torch.dtype, wrong: int, reduction: str
) -> None:
    levels = torch.ones(4, 6, dtype=dtype)
    levels[3, 5] = wrong
    with pytest.raises(ValueError, match=re.escape("levels must lie in -1..2 (max_level)")):
        step(levels=DenseLevels(levels, max_level=2), backend=backend, reduction=reduction)


@pytest.mark.parametrize("row", [0, 5, 39])
def test_a_level_above_max_level_is_found_by_every_thread(row: int, backend: str) -> None:
    levels = torch.ones(40, 6, dtype=torch.int8)
    levels[row, 5] = 3
    source, q, c = DenseLevels(levels, max_level=2), torch.ones(40, 2), torch.ones(6, 2)
    with pytest.raises(ValueError, match=re.escape("levels must lie in -1..2 (max_level)")):
        grainrank.level_statistics(q, c, source, temperature=1.0, backend=backend)  # type: ignore[arg-type]


def test_level_statistics_checks_the_same() -> None:
    with pytest.raises(ValueError, match="got neither"):
        grainrank.level_statistics(Q, C)
    with pytest.raises(TypeError, match="levels must be None or a level source"):
        grainrank.level_statistics(Q, C, 3, temperature=1.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend must be one of"):
        grainrank.level_statistics(Q, C, temperature=1.0, backend="none")  # type: ignore[arg-type]


def test_the_module_refuses_two_scales_when_made_and_none_when_called() -> None:
    with pytest.raises(ValueError, match="got both"):
        MultiLevelRankingLoss(temperature=0.1, logit_scale=10.0)
    with pytest.raises(ValueError, match="got neither"):
        MultiLevelRankingLoss()(Q, C)
