"""The steps whose kernels are compiled: every kernel, in the forms that differ in their code."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import grainrank
from grainrank import (
    DenseLevels,
    Diagonal,
    GrainKeys,
    LevelSource,
    SimilarityBands,
    SparseLevels,
)
from grainrank.testing import DTYPES, Inputs, Shape, make_dense_levels, make_inputs

__all__ = ["Configuration", "configurations"]

SHAPE = Shape(128, 256, 768, 3)  # Triton knows that lengths are multiples of 16
RAGGED = Shape(100, 250, 40, 3)  # and here that they are not
# The code of the level sources is the same everywhere; here it meets each kind of tensor core.
WITH_SOURCES = ("sm_80", "sm_90", "sm_100", "gfx942")
EDGES = [-0.4, 0.1, 0.5]


@dataclass(frozen=True)
class Configuration:
    name: str
    run: Callable[[], None]
    dot: str  #: dtype of the factors of the product in the kernels; "" where a library takes it
    aligned: bool = True  #: rows of embeddings start at multiples of 16 elements


def configurations(target: str) -> list[Configuration]:
    """A kernel counts for the first that launches it."""
    c: list[Configuration] = []
    add = c.append
    temperature: dict[str, Any] = {"temperature": 0.2}
    symmetric: dict[str, Any] = {**temperature, "direction": "symmetric"}
    siglip: dict[str, Any] = {"logit_scale": 3.0, "logit_bias": -1.0}
    add(_fused("multi_level", grainrank.multi_level_ranking_loss, **temperature))
    add(_fused("info_nce-symmetric", grainrank.info_nce_loss, **symmetric))
    add(_fused("pairwise", grainrank.pairwise_ranking_loss, **temperature))
    add(_fused("pairwise-symmetric", grainrank.pairwise_ranking_loss, **symmetric))
    add(_fused("level_temperatures", _with_level_temperatures))
    add(_fused("circle", grainrank.circle_loss))
    add(_fused("unique_softmax", grainrank.unique_softmax_loss, **temperature))
    add(_fused("siglip", grainrank.siglip_loss, **siglip))
    add(_fused("ceiling", grainrank.info_nce_loss, _ceiling, **temperature))
    add(_fused("ceiling-of-reference", grainrank.info_nce_loss, _reference, **symmetric))
    add(_fused("multi_level", grainrank.multi_level_ranking_loss, shape=RAGGED, **temperature))
    for dot in ("f16", "f32", "tf32"):
        add(_fused("multi_level", grainrank.multi_level_ranking_loss, dot=dot, **temperature))
    vendor: dict[str, Any] = {"product": "vendor", "dot": ""}
    add(_step("multi_level", grainrank.multi_level_ranking_loss, **vendor, **temperature))
    add(_step("pairwise-symmetric", grainrank.pairwise_ranking_loss, **vendor, **symmetric))
    add(_step("siglip", grainrank.siglip_loss, **vendor, **siglip))
    prefixes = {"dtype": "bf16", "matryoshka_dims": (64, 256, 768)}
    add(_step("matryoshka", grainrank.info_nce_loss, **vendor, **symmetric, **prefixes))
    if target in WITH_SOURCES:
        for name, source in _SOURCES.items():
            add(_fused(name, grainrank.info_nce_loss, source, **temperature))
    return c


def _fused(
    name: str,
    loss: Callable[..., Tensor],
    levels: Callable[[Inputs], LevelSource] | None = None,
    dot: str = "bf16",
    **options: Any,
) -> Configuration:
    dtype = {"bf16": "bf16", "f16": "fp16", "f32": "fp32", "tf32": "fp32"}[dot]
    return _step(name, loss, levels, dtype, "fused", dot, **options)


def _step(
    name: str,
    loss: Callable[..., Tensor],
    levels: Callable[[Inputs], LevelSource] | None = None,
    dtype: str = "fp32",
    product: str = "fused",
    dot: str = "",
    shape: Shape = SHAPE,
    **options: Any,
) -> Configuration:
    """A loss, forward and backward."""
    options = {**options, "backend": "triton", "product": product}
    run = functools.partial(_run, loss, levels, dtype, shape, options, dot == "tf32")
    words = [name, "tf32" if dot == "tf32" else dtype, product]
    aligned = shape.D % 16 == 0
    return Configuration("-".join(words if aligned else [*words, "ragged"]), run, dot, aligned)


def _run(
    loss: Callable[..., Tensor],
    levels: Callable[[Inputs], LevelSource] | None,
    dtype: str,
    shape: Shape,
    options: dict[str, Any],
    tf32: bool,
) -> None:
    inputs = make_inputs(shape, DTYPES[dtype], seed=0)
    q, c = (x.clone().requires_grad_() for x in inputs[:2])
    source = inputs.levels if levels is None else levels(inputs)
    with _allowed(tf32):
        loss(q, c, source, **options).backward()


@contextmanager
def _allowed(tf32: bool) -> Iterator[None]:
    matmul = torch.backends.cuda.matmul
    before, matmul.allow_tf32 = matmul.allow_tf32, tf32
    try:
        yield
    finally:
        matmul.allow_tf32 = before


def _with_level_temperatures(q: Tensor, c: Tensor, levels: LevelSource, **options: Any) -> Tensor:
    """Their gradient takes sums of every level."""
    temperatures = torch.tensor([0.5, 0.4, 0.3], requires_grad=True)
    return grainrank.multi_level_ranking_loss(
        q, c, levels, level_temperatures=temperatures, **options
    )


def _ids(inputs: Inputs, kinds: int) -> tuple[Tensor, Tensor]:
    return tuple(torch.arange(len(x)) % kinds for x in inputs[:2])  # type: ignore[return-value]


def _ceiling(inputs: Inputs) -> LevelSource:
    return inputs.levels.false_negative_margin(0.05)


def _reference(inputs: Inputs) -> LevelSource:
    q, c = (x.float()[:, :32] for x in inputs[:2])
    return inputs.levels.false_negative_margin(0.05, reference=(q, c), curated=_ids(inputs, 7))


def _seven_grains(inputs: Inputs) -> LevelSource:
    return make_inputs(Shape(len(inputs[0]), len(inputs[1]), 1, 7)).levels


def _dense(inputs: Inputs) -> LevelSource:
    shape = Shape(len(inputs[0]), len(inputs[1]), 1)
    return DenseLevels(make_dense_levels(shape, 3), 3)


def _sparse(inputs: Inputs) -> LevelSource:
    n, m = len(inputs[0]), len(inputs[1])
    return SparseLevels(torch.arange(n + 1), torch.arange(n) % m, 1 + torch.arange(n) % 3, m, 3)


def _bands(inputs: Inputs, thresholds: Tensor | None = None) -> SimilarityBands:
    q, c = (x.float()[:, :32] for x in inputs[:2])
    return SimilarityBands(q, c, EDGES if thresholds is None else thresholds)


def _bands_of_rows(inputs: Inputs) -> SimilarityBands:
    return _bands(inputs, torch.tensor(EDGES).expand(len(inputs[0]), 3))


def _bands_of_columns(inputs: Inputs) -> LevelSource:
    exchanged = inputs._replace(queries=inputs.candidates, candidates=inputs.queries)
    return _bands_of_rows(exchanged).transposed()


def _three(inputs: Inputs) -> LevelSource:
    ids = _ids(inputs, 7)
    union = _bands(inputs).exclude(*ids) | _sparse(inputs) | _bands_of_rows(inputs)
    return union.exclude(*_ids(inputs, 5))


_SOURCES: dict[str, Callable[[Inputs], LevelSource]] = {
    "diagonal": lambda inputs: Diagonal(),
    "count": lambda inputs: GrainKeys(*inputs.levels.tensors, match="count"),
    "seven_grains": _seven_grains,
    "dense": _dense,
    "sparse": _sparse,
    "bands": _bands,
    "bands_of_rows": _bands_of_rows,
    "bands_of_columns": _bands_of_columns,
    "union_of_three": _three,
}
