"""Wrong options of the losses: the error names the option, what was expected, what came."""

# ruff: noqa: E501  (one case a line reads better)

from __future__ import annotations

from typing import Any

import pytest
import torch

import grainrank
from grainrank import DenseLevels, Diagonal, GrainKeys, SparseLevels

Q = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
C = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
KEYS = torch.zeros(6, 2, dtype=torch.int64)
LEVELS = GrainKeys(KEYS[:4], KEYS)
SPARSE = SparseLevels.from_qrels(range(4), range(6), {(0, 0): 1})
T: dict[str, Any] = {"temperature": 0.1}
JOINT = {**T, "direction": "joint"}

CASES: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "misspelled": (
        "info_nce", {"temprature": 0.1}, TypeError, "this loss has no option 'temprature'; .* it has direction, .*temperature"
    ),
    "an option of another loss": ("sup_con", {**T, "margin": 0.1}, TypeError, "no option 'margin'"),
    "a temperature of Circle": ("circle", T, TypeError, "this loss has no option 'temperature'"),
    "a scale of MultiSimilarity": ("multi_similarity", {"logit_scale": 9.0}, TypeError, "no option 'logit_scale'"),
    "direction": ("info_nce", {**T, "direction": "both"}, ValueError, "direction must be one of 'query_to_candidate', .*got 'both'"),
    "one loss a row, both ways": ("clip", {**T, "reduction": "none"}, ValueError, 'reduction="none" .* got direction="symmetric"; call'),
    "prefixes beyond D": ("info_nce", {**T, "matryoshka_dims": (4, 9)}, ValueError, r"matryoshka_dims must be different lengths in 1\.\.D = 1\.\.8, got \[4, 9\]"),
    "a prefix twice": ("info_nce", {**T, "matryoshka_dims": (4, 4)}, ValueError, "different lengths"),
    "no prefix": ("info_nce", {**T, "matryoshka_dims": ()}, ValueError, r"got \[\]"),
    "a prefix of text": ("info_nce", {**T, "matryoshka_dims": ("4",)}, TypeError, "sequence of ints"),
    "weights of no prefixes": ("info_nce", {**T, "matryoshka_weights": [1.0]}, ValueError, "matryoshka_weights needs matryoshka_dims"),
    "weights of other prefixes": (
        "info_nce", {**T, "matryoshka_dims": (4, 8), "matryoshka_weights": [1.0]}, ValueError, "each of the 2 matryoshka_dims, got 1"
    ),
    "joint block": ("info_nce", {**JOINT, "joint_blocks": ("query",)}, ValueError, "joint_blocks must be one of 'query_query'.* got 'query'"),
    "one joint block": ("info_nce", {**JOINT, "joint_blocks": "query_query"}, TypeError, "joint_blocks must be a sequence of names"),
    "levels of a joint direction": ("info_nce", {**T, "query_levels": Diagonal()}, ValueError, 'belong to direction="joint", got direction="query_to'),
    "judgements say nothing of queries": (
        "info_nce", {**JOINT, "levels": SPARSE}, ValueError, 'query_levels must be given for direction="joint" with SparseLevels'
    ),
    "levels of other queries": ("info_nce", {**JOINT, "query_levels": DenseLevels(torch.zeros(4, 6).long())}, ValueError, r"\[4, 4\], got \(4, 6\)"),
    "positives by themselves, joint": ("rince", {**JOINT, "form": "out"}, ValueError, 'direction="joint" has no form'),
    "memory of candidates": ("info_nce", {**T, "direction": "candidate_to_query", "memory": C}, ValueError, "memory has candidates for the queries alone"),
    "integer memory": ("info_nce", {**T, "memory": C.long()}, TypeError, "memory must be floating, got torch.int64"),
    "hardness": ("hard_negative_nce", {**T, "hardness": 0.0}, ValueError, "hardness must be positive and finite, got 0.0"),
    "form of RINCE": ("rince", {**T, "form": "inner"}, ValueError, "form must be one of 'in', 'out', 'out-in', got 'inner'"),
    "form of HMLC": ("hmlc", {**T, "form": "hm"}, ValueError, "form must be one of 'hmc', 'hce', 'hmce', got 'hm'"),
    "two kinds of temperatures": (
        "rince", {**T, "level_temperatures": [0.1, 0.2]}, ValueError, "level_temperatures takes the place of temperature and logit_scale, got both"
    ),
    "temperatures of other levels": ("rince", {"level_temperatures": [0.1]}, ValueError, r"level_temperatures must have L = 2 numbers, .* got shape \(1,\)"),
    "a temperature of 0": ("rince", {"level_temperatures": [0.1, 0.0]}, ValueError, r"level_temperatures must be finite and positive, got \[0\.1, 0\.0\]"),
    "integer temperatures": ("rince", {"level_temperatures": torch.tensor([1, 2])}, TypeError, "level_temperatures must be a floating tensor"),
    "a sum of the batch": ("hmlc", {**T, "reduction": "sum"}, ValueError, "reduction must be \"mean\" for hmlc_loss, .* got 'sum'"),
    "a sum of all pairs": ("cosent", {**T, "reduction": "none"}, ValueError, "reduction must be \"mean\" for scope=\"batch\", .* got 'none'"),
    "margins of other levels": ("csl", {**T, "margins": [1.0]}, ValueError, r"margins must have L = 2 numbers, .* got shape \(1,\)"),
    "margins of other pairs": ("pairwise_ranking", {**T, "margin": torch.zeros(2, 2)}, ValueError, r"\[L \+ 1, L \+ 1\] = \[3, 3\], got \(2, 2\)"),
    "scope": ("pairwise_ranking", {**T, "scope": "all"}, ValueError, "scope must be one of 'row', 'batch', got 'all'"),
    "text margin": ("pairwise_ranking", {**T, "margin": "1"}, TypeError, "margin must be a number.*got str"),
    "gains of other levels": ("softmax_ranking", {**T, "gains": [1.0]}, ValueError, "gains must have L = 2 numbers"),
    "negative gains": ("unique_softmax", {**T, "gains": [1.0, -1.0]}, ValueError, r"gains must be finite and not negative, got \[1\.0, -1\.0\]"),
    "gamma": ("circle", {"gamma": 0.0}, ValueError, "gamma must be positive and finite, got 0.0"),
    "alpha": ("multi_similarity", {"alpha": -1.0}, ValueError, "alpha must be positive and finite, got -1.0"),
    "infinite base": ("multi_similarity", {"base": float("inf")}, ValueError, "base must be finite, got inf"),
    "sigmoid both ways": ("siglip", {**T, "direction": "symmetric"}, ValueError, "whose pairs have no direction, got 'symmetric'"),
    "sigmoid of a row": ("siglip", {**T, "reduction": "none"}, ValueError, "reduction must be \"mean\" or \"sum\" for siglip_loss"),
    "bias vector": ("siglip", {**T, "logit_bias": torch.zeros(2)}, ValueError, r"logit_bias must be a number .* got shape \(2,\)"),
    "weights without level 0": ("siglip", {**T, "level_weights": [1.0, 1.0]}, ValueError, r"level_weights must have L \+ 1 = 3 numbers"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_loss_refuses(case: str) -> None:
    name, options, error, message = CASES[case]
    loss = getattr(grainrank, f"{name}_loss")
    with pytest.raises(error, match=message):
        loss(Q, C, options.pop("levels", LEVELS), **options)


def test_gist_embed() -> None:
    with pytest.raises(ValueError, match="margin_strategy must be one of 'absolute', 'relative'"):
        grainrank.gist_embed_loss(Q, C, Q, C, margin_strategy="share", **T)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"reference of the queries must have N = 4 rows.*got 6"):
        grainrank.gist_embed_loss(Q, C, C, C, **T)


def test_modules_refuse_when_they_are_made() -> None:
    with pytest.raises(TypeError, match="InfoNCELoss has no option 'hardness'; it has direction"):
        grainrank.InfoNCELoss(temperature=0.1, hardness=0.2)
    with pytest.raises(TypeError, match="CircleLoss has no option 'temperature'; it has gamma"):
        grainrank.CircleLoss(temperature=0.1)
    with pytest.raises(ValueError, match="got both temperature and level_temperatures"):
        grainrank.RINCELoss(temperature=0.1, level_temperatures=[0.1, 0.2])


def test_level_statistics() -> None:
    with pytest.raises(ValueError, match="softplus_against must be one of 'lower', 'unrelated'"):
        grainrank.level_statistics(Q, C, softplus_against="all", **T)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="softplus_against belongs to one direction"):
        grainrank.level_statistics(Q, C, softplus_against="lower", direction="symmetric", **T)
    with pytest.raises(ValueError, match=r"direction must be one of .* got 'joint'"):
        grainrank.level_statistics(Q, C, direction="joint", **T)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"level_scales must have L \+ 1 = 2 numbers"):
        grainrank.level_statistics(Q, C, level_scales=[1.0], **T)
