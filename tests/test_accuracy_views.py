"""The rule of accuracy for columns, prefixes, factors, memory, the circle's curve, the softplus
sums and the sigmoid loss: tables and gradients, every instruction set and dtype, against 80 bits.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import definition_views
import pytest
import torch
from definition import wide
from definition_views import DIFFERENTIABLE
from three_ways import judge, upstream
from torch import Tensor

from grainrank import LevelSource, autograd
from grainrank.batch import Batch
from grainrank.levels import DenseLevels, GrainKeys
from grainrank.testing import DTYPES, Shape, make_dense_levels, make_inputs

SHAPE = Shape(33, 65, 24, 3)
MEMORY = 9  # of the 65 columns
DRAWS, DRAWS_OF_FACTORS = 5, 16  # the gradients of factors are few numbers
ALL = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES.keys())


class Views(NamedTuple):
    """What a batch is read through."""

    dims: tuple[int, ...] = ()
    factors: int = 0  # F
    memory: bool = False
    circle: float | None = None
    softplus: str = ""
    normalize: bool = True
    dense: int = 0  # L of dense levels; 0: keys
    blocks: int = 1
    scale: float = 4.0

    def id(self) -> str:
        changed = {k: v for k, v in self._asdict().items() if v != self._field_defaults[k]}
        return "-".join(f"{k}={v}".replace(" ", "") for k, v in changed.items()) or "columns"


CASES = (
    Views(),
    Views(dense=8, blocks=3),
    Views(memory=True, blocks=2),
    Views(dims=(3, 8, 24), blocks=2),
    Views(dims=(5, 20), normalize=False, scale=0.2),
    Views(dims=(7, 24), memory=True, factors=2, blocks=3),
    Views(factors=1, dense=2),
    Views(factors=3, softplus="lower"),
    Views(softplus="lower", blocks=2),
    Views(softplus="unrelated", memory=True, dims=(6, 24)),
    Views(circle=0.25),
    Views(circle=0.4, dims=(8, 24), memory=True, blocks=2),
)


def make(views: Views, dtype: torch.dtype, seed: int) -> Batch:
    inputs = make_inputs(SHAPE, dtype, seed=seed)
    levels: LevelSource = GrainKeys(inputs.query_keys, inputs.candidate_keys)
    if views.dense:
        levels = DenseLevels(make_dense_levels(SHAPE, views.dense, seed=seed), views.dense)
    split = SHAPE.M - MEMORY if views.memory else SHAPE.M
    wider = torch.float64 if dtype == torch.float64 else torch.float32
    factors = None
    if views.factors:
        generator = torch.Generator().manual_seed(seed)
        size = (views.factors, levels.max_level + 1)
        factors = (torch.rand(size, generator=generator) + 0.5).to(wider).requires_grad_()
    rows = -(-SHAPE.N // views.blocks)
    width = 8 if wider == torch.float64 else 4
    row_bytes = (len(views.dims) or 1) * SHAPE.M * width
    return Batch(
        inputs.queries.requires_grad_(),
        inputs.candidates[:split].clone().requires_grad_(),
        torch.tensor(views.scale, dtype=wider, requires_grad=True),
        levels,
        views.normalize,
        factors,
        inputs.candidates[split:] if views.memory else None,
        views.dims,
        views.circle,
        workspace_mb=(rows + 0.5) * row_bytes / 2**20,
    )


def table_upstreams(exact: dict[str, Any], seed: int) -> dict[str, Tensor]:
    """Gradients of the tables, 0 at empty levels and for neg_lse of level 0."""
    there = torch.from_numpy(exact["count"]) > 0
    out = {}
    for i, name in enumerate((*DIFFERENTIABLE, "softplus")):
        out[name] = upstream(seed + 7 * i, *there.shape) * there
    out["neg_lse"][..., 0] = out["softplus"][..., 0] = 0
    return out


def step(
    batch: Batch, views: Views, backend: str, d_rows: Any, d_columns: Any
) -> dict[str, Tensor]:
    rows, columns = autograd.level_tables(
        batch, backend, full=True, columns=True, softplus=views.softplus
    )
    assert columns is not None
    names = (*DIFFERENTIABLE, "softplus") if views.softplus else DIFFERENTIABLE
    tables = [(getattr(rows, name), d_rows[name]) for name in names]
    tables += [(getattr(columns, name), d_columns[name]) for name in DIFFERENTIABLE]
    inputs = {
        f"d_{name}": x
        for name in ("queries", "candidates", "scale", "factors")
        if (x := getattr(batch, name)) is not None and not (views.circle and name == "scale")
    }
    values = [t for t, _ in tables]
    gradients = torch.autograd.grad(
        values, list(inputs.values()), [d.to(batch.dtype) for _, d in tables]
    )
    out = {f"row_{k}": v for k, v in rows._asdict().items() if v is not None}
    out |= {f"column_{k}": v for k, v in columns._asdict().items() if v is not None}
    return {k: v.detach() for k, v in out.items()} | dict(zip(inputs, gradients, strict=True))


@functools.lru_cache(maxsize=2)
def evidence(views: Views, dtype: torch.dtype) -> Any:
    upstreams, reference, truth = [], [], []
    for seed in range(DRAWS_OF_FACTORS if views.factors else DRAWS):
        batch = make(views, dtype, seed)
        rows, columns = definition_views.tables(batch, views.softplus)
        d = table_upstreams(rows, seed), table_upstreams(columns, seed + 1)
        exact = definition_views.gradients(
            batch, *({k: wide(x) for k, x in side.items()} for side in d), views.softplus
        )
        exact |= {f"row_{k}": v for k, v in rows.items()}
        exact |= {f"column_{k}": v for k, v in columns.items()}
        upstreams.append(d)
        reference.append(step(batch, views, "reference", *d))
        truth.append(definition_views.as_tensors(exact))
    return upstreams, reference, truth


@pytest.mark.parametrize("views", CASES, ids=Views.id)
@ALL
def test_tables_and_gradients(views: Views, dtype: torch.dtype, instruction_set: str) -> None:
    upstreams, reference, truth = evidence(views, dtype)
    actual = [step(make(views, dtype, seed), views, "cpu", *d) for seed, d in enumerate(upstreams)]
    for side in ("row", "column"):
        there = [a[f"{side}_count"] > 0 for a in actual]
        for a, t in zip(actual, truth, strict=True):
            for name in ("count", "highest_at", "lowest_at"):
                if name == "count" or dtype == torch.float64:
                    assert a[f"{side}_{name}"].tolist() == t[f"{side}_{name}"][0].tolist(), name
        positive = [here & (torch.arange(here.shape[-1]) > 0) for here in there]
        for name in DIFFERENTIABLE:
            where = positive if name == "neg_lse" else there
            judge(f"{side}_{name}", actual, reference, truth, where)
    if views.softplus:
        judge("row_softplus", actual, reference, truth)
    for name in actual[0]:
        if name.startswith("d_"):
            judge(name, actual, reference, truth)


@pytest.mark.parametrize("memory", [False, True], ids=["batch", "memory"])
@ALL
def test_sigmoid_loss(memory: bool, dtype: torch.dtype, instruction_set: str) -> None:
    results: dict[str, list[Any]] = {"cpu": [], "reference": [], "truth": []}
    for seed in range(DRAWS):
        batch = make(Views(memory=memory, blocks=2), dtype, seed)
        bias = torch.tensor(-1.5, dtype=batch.dtype, requires_grad=True)
        weights = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=batch.dtype)
        for backend in ("cpu", "reference"):
            loss = autograd.sigmoid_loss_sum(batch, backend, bias, weights)
            inputs = (batch.queries, batch.candidates, batch.scale, bias)
            d = torch.autograd.grad(loss, inputs, torch.tensor(1.5, dtype=batch.dtype))
            names = ("d_queries", "d_candidates", "d_scale", "d_bias")
            step = {"loss": loss.detach(), **dict(zip(names, d, strict=True))}
            results[backend].append(step)
        exact = definition_views.sigmoid(batch, wide(bias), wide(weights))
        exact = {"loss": exact.pop("losses").sum()} | {k: 1.5 * d for k, d in exact.items()}
        results["truth"].append(definition_views.as_tensors(exact))
    for name in results["cpu"][0]:
        judge(name, results["cpu"], results["reference"], results["truth"])
