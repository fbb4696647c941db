"""The steps whose kernels are compiled: every kernel, in the forms that differ in their code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from rank_sweeps import STEPS
from test_level_sources import sources

import grainrank
from grainrank import DenseLevels, GrainKeys, LevelSource
from grainrank.batch import Batch
from grainrank.ceilings import resolve_ceilings
from grainrank.ranks.blocks import level_counts
from grainrank.row_blocks import RowBlocks
from grainrank.testing import DTYPES, Shape, make_dense_levels, make_inputs
from grainrank.triton_ranks import TritonRankPasses

__all__ = ["configurations"]

SHAPE = Shape(128, 256, 768, 3)  # Triton knows that lengths are multiples of 16
RAGGED = Shape(100, 250, 40, 3)  # and here that they are not
LOSSES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "multi_level": (grainrank.multi_level_ranking_loss, {"temperature": 0.2}),
    "info_nce-symmetric": (
        grainrank.info_nce_loss,
        {"temperature": 0.2, "direction": "symmetric"},
    ),
    "pairwise": (grainrank.pairwise_ranking_loss, {"temperature": 0.2}),
    "pairwise-symmetric": (
        grainrank.pairwise_ranking_loss,
        {"temperature": 0.2, "direction": "symmetric"},
    ),
    "multi_level-temperatures": (
        grainrank.multi_level_ranking_loss,
        {"level_temperatures": [0.5, 0.4, 0.3]},
    ),
    "circle": (grainrank.circle_loss, {}),
    "unique_softmax": (grainrank.unique_softmax_loss, {"temperature": 0.2}),
    "siglip": (grainrank.siglip_loss, {"logit_scale": 3.0, "logit_bias": -1.0}),
    "info_nce": (grainrank.info_nce_loss, {"temperature": 0.2}),
}
WITH_SOURCES = ("sm_80", "sm_90")
Step = Callable[[], None]


def configurations(target: str) -> list[tuple[str, Step]]:
    """(id, a loss forward and backward). A kernel counts for the first one that launches it."""
    steps = [_step(loss, "bf16", "fused") for loss in LOSSES if loss != "info_nce"]
    steps += [
        _step("multi_level", "fp16", "fused"),
        _step("multi_level", "fp32", "fused"),
        _step("multi_level", "tf32", "fused"),
        _step("multi_level", "fp32", "vendor"),
        _step("pairwise-symmetric", "fp32", "vendor"),
        _step("siglip", "fp32", "vendor"),
        _step("multi_level", "bf16", "vendor", "matryoshka", matryoshka_dims=(64, 256, 768)),
        _step("multi_level", "bf16", "fused", "ragged", shape=RAGGED),
    ]
    steps += [_ranks("first", dtype) for dtype in ("fp32", "fp64")]
    steps += [_ranks(name, dtype) for name in STEPS for dtype in ("bf16", "fp16", "fp32", "fp64")]
    steps.append(_ranks("upper_bound", "fp32", "ragged", shape=RAGGED))
    for dtype in ("fp32", "fp64"):
        steps.append(_ranks("upper_bound", dtype, "nine_levels", max_level=8))
    if target in WITH_SOURCES:
        steps += [_ranks(ties, "fp32") for ties in ("last", "optimistic", "pessimistic")]
        for name, source in sources(SHAPE.N, SHAPE.M).items():
            steps.append(_ranks("first", "bf16", name.replace(" ", "_"), levels=source))
        steps.append(_ranks("first", "bf16", "ceilings", levels=_judged()))
        steps.append(_ceilings())
        for name, source in sources(SHAPE.N, SHAPE.M).items():
            steps.append(_step("info_nce", "bf16", "fused", name.replace(" ", "_"), source))
    return steps


def _ceilings() -> tuple[str, Step]:
    return _step("info_nce-symmetric", "bf16", "fused", "ceilings", _judged())


def _judged() -> LevelSource:
    """By a guide's similarities, with curated ids: the most that a level may depend on."""
    inputs = make_inputs(SHAPE, seed=0)
    return GrainKeys(inputs.query_keys, inputs.candidate_keys).false_negative_margin(
        0.05,
        reference=(inputs.queries[:, :16].contiguous(), inputs.candidates[:, :16].contiguous()),
        curated=(torch.arange(SHAPE.N), torch.arange(SHAPE.M)),
    )


def _ranks(
    step: str,
    dtype: str,
    variant: str = "",
    *,
    levels: LevelSource | None = None,
    shape: Shape = SHAPE,
    max_level: int = 3,
) -> tuple[str, Step]:
    """A step of ranks: `step` is a surrogate, or says how ties are broken."""
    run = functools.partial(_run_ranks, step, dtype, levels, shape, max_level)
    return "-".join(filter(None, ("ranks", step, dtype, variant))), run


def _run_ranks(
    name: str, dtype: str, levels: LevelSource | None, shape: Shape, max_level: int
) -> None:
    inputs = make_inputs(shape, DTYPES[dtype], seed=0)
    given = levels or GrainKeys(inputs.query_keys, inputs.candidate_keys)
    batch = Batch(*inputs[:2], torch.ones(()), given)
    batch = resolve_ceilings(batch._replace(scale=batch.scale.to(batch.dtype)), "reference", False)
    passes = TritonRankPasses(batch)
    (item,) = RowBlocks(batch, passes, bound=batch.scale)
    (block,) = item.blocks
    passes.block_levels(block)
    if levels is not None:
        return
    # Nothing was launched: the levels are others, so that there are positives.
    dense = make_dense_levels(shape, max_level, seed=0)
    passes = TritonRankPasses(batch._replace(levels=DenseLevels(dense, max_level)))
    positives = passes.positives(block, dense, level_counts(dense, max_level))
    if name not in STEPS:
        passes.exact_ranks(block, dense, positives, name)
        return
    sums = passes.smooth_ranks(block, dense, positives, STEPS[name])
    passes.rank_gradient_(block, dense, positives, STEPS[name], sums.above, sums.above[:, 0])


def _step(
    loss: str,
    dtype: str,
    product: str,
    variant: str = "",
    levels: LevelSource | None = None,
    shape: Shape = SHAPE,
    **options: Any,
) -> tuple[str, Step]:
    run = functools.partial(_run, loss, dtype, product, levels, shape, options)
    return "-".join(filter(None, (loss, dtype, product, variant))), run


def _run(
    name: str,
    dtype: str,
    product: str,
    levels: LevelSource | None,
    shape: Shape,
    options: dict[str, Any],
) -> None:
    loss, more = LOSSES[name]
    inputs = make_inputs(shape, DTYPES["fp32" if dtype == "tf32" else dtype], seed=0)
    q, c = (x.clone().requires_grad_() for x in inputs[:2])
    if levels is None:
        levels = GrainKeys(inputs.query_keys, inputs.candidate_keys)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = dtype == "tf32"
    try:
        loss(q, c, levels, backend="triton", product=product, **more, **options).backward()
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
