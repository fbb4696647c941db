"""The steps whose kernels are compiled: every kernel, in the forms that differ in their code."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from test_level_sources import sources

import grainrank
from grainrank import GrainKeys, LevelSource
from grainrank.testing import DTYPES, Shape, make_inputs

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
    if target in WITH_SOURCES:
        steps.append(_ceilings())
        for name, source in sources(SHAPE.N, SHAPE.M).items():
            steps.append(_step("info_nce", "bf16", "fused", name.replace(" ", "_"), source))
    return steps


def _ceilings() -> tuple[str, Step]:
    """Of a guide's similarities, with curated ids: the most that a level may depend on."""
    inputs = make_inputs(SHAPE, seed=0)
    levels = GrainKeys(inputs.query_keys, inputs.candidate_keys).false_negative_margin(
        0.05,
        reference=(inputs.queries[:, :16].contiguous(), inputs.candidates[:, :16].contiguous()),
        curated=(torch.arange(SHAPE.N), torch.arange(SHAPE.M)),
    )
    return _step("info_nce-symmetric", "bf16", "fused", "ceilings", levels)


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
