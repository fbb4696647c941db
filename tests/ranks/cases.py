"""Losses that ranks compute together; each is a function of a part, or of the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from ranks.batches import LEVELS, Data
from torch import Tensor

import grainrank as gr
from grainrank import DenseLevels, GrainKeys, SimilarityBands, SparseLevels


@dataclass(frozen=True)
class Leaves:
    """What collects gradients. Numbers are the same on every rank."""

    queries: Tensor
    candidates: Tensor
    scale: Tensor  # 0-d
    bias: Tensor  # 0-d
    numbers: Tensor  # [L]


def leaves(data: Data) -> Leaves:
    dtype = torch.float64 if data.queries.dtype == torch.float64 else torch.float32

    def number(*values: float) -> Tensor:
        return torch.tensor(values, dtype=dtype, requires_grad=True)

    return Leaves(
        data.queries.clone().requires_grad_(),
        data.candidates.clone().requires_grad_(),
        number(6.0).squeeze().detach().requires_grad_(),
        number(-2.0).squeeze().detach().requires_grad_(),
        number(0.3, 0.2, 0.15),
    )


Step = Callable[[Leaves, Data, dict[str, Any]], Tensor]


@dataclass(frozen=True)
class Case:
    """`local`: the result is the own rows', and the objective is its sum with weights.

    `pairs`: candidate i of a rank belongs to its query i, which one process can only say of
    candidates in another order.
    """

    step: Step
    local: bool = False
    block: bool = False  # no levels across ranks
    pairs: bool = False
    ring: bool = True  # whether it has a form for this transport


def _keys(data: Data) -> GrainKeys:
    return GrainKeys(data.query_keys, data.candidate_keys)


def _sparse(levels: Tensor) -> SparseLevels:
    row, column = levels.nonzero(as_tuple=True)
    indptr = torch.searchsorted(row, torch.arange(levels.shape[0] + 1))
    return SparseLevels(indptr, column, levels[row, column], levels.shape[1], LEVELS)


def _of(
    loss: Callable[..., Tensor],
    levels: Callable[[Data], Any] = _keys,
    scaled: bool = True,
    **options: Any,
) -> Step:
    def step(x: Leaves, data: Data, where: dict[str, Any]) -> Tensor:
        scale = {"logit_scale": x.scale} if scaled else {}
        return loss(x.queries, x.candidates, levels(data), **scale, **options, **where)

    return step


def _keys_with_memory(data: Data) -> GrainKeys:
    return GrainKeys(data.query_keys, torch.cat([data.candidate_keys, data.memory_keys]))


def _all_with_memory(data: Data) -> SparseLevels:
    levels = GrainKeys(data.query_keys, data.all_keys)
    return _sparse(levels.block(0, len(data.query_keys), len(data.all_keys)))


def _margin_with_memory(data: Data) -> Any:
    memory = torch.ones(len(data.memory), data.query_reference.shape[1])
    reference = data.query_reference, torch.cat([data.candidate_reference, memory])
    return _all_with_memory(data).false_negative_margin(0.2, reference=reference)


def _with_memory(
    loss: Callable[..., Tensor],
    levels: Callable[[Data], Any] = _keys_with_memory,
    scaled: bool = True,
    **options: Any,
) -> Step:
    def step(x: Leaves, data: Data, where: dict[str, Any]) -> Tensor:
        scale = {"logit_scale": x.scale} if scaled else {}
        return loss(
            x.queries,
            x.candidates,
            levels(data),
            memory=data.memory,
            **scale,
            **options,
            **where,
        )

    return step


def _numbers(loss: Callable[..., Tensor], name: str, scaled: bool = True, **options: Any) -> Step:
    def step(x: Leaves, data: Data, where: dict[str, Any]) -> Tensor:
        scale = {"logit_scale": x.scale} if scaled else {}
        given = {name: x.bias if name == "logit_bias" else x.numbers}
        return loss(x.queries, x.candidates, _keys(data), **scale, **given, **options, **where)

    return step


def _statistics(both: bool) -> Step:
    """A weighted sum of every differentiable table."""

    def step(x: Leaves, data: Data, where: dict[str, Any]) -> Tensor:
        direction = "symmetric" if both else "query_to_candidate"
        stats = gr.level_statistics(
            x.queries,
            x.candidates,
            _keys(data),
            logit_scale=x.scale,
            logit_bias=x.bias,
            direction=direction,
            **where,
        )
        rows = []
        for t in stats if both else (stats,):
            there = t.count > 0
            tables = (t.lse, t.neg_lse, t.total, t.highest, t.lowest)
            # Level 0 has no neg_lse.
            parts = [torch.where(there & (table.abs() < 1e29), table, 0.0) for table in tables]
            weights = torch.arange(1, 6, dtype=t.lse.dtype)[:, None, None]
            rows.append((torch.stack(parts) * weights).sum(dim=(0, 2)))
        return torch.cat(rows) if not both else rows[0].sum() + rows[1].sum()

    return step


def _hinge(tables: Any) -> Tensor:
    (t,) = tables
    gap = torch.relu(t.highest[:, 0] - t.lse[:, LEVELS] + 2.0)
    return torch.where((t.count[:, 0] > 0) & (t.count[:, LEVELS] > 0), gap, 0.0)


def _largest(tables: Any) -> Tensor:
    (t,) = tables
    return torch.logsumexp(t.lse[:, 0], dim=0)


def _head(head: Callable[[Any], Tensor]) -> Step:
    def step(x: Leaves, data: Data, where: dict[str, Any]) -> Tensor:
        return gr.head_loss(
            head, x.queries, x.candidates, _keys(data), logit_scale=x.scale, **where
        )

    return step


def _gist(**options: Any) -> Step:
    def step(x: Leaves, data: Data, where: dict[str, Any]) -> Tensor:
        guide = data.query_reference, data.candidate_reference
        given = (x.queries, x.candidates, *guide, _keys(data))
        return gr.gist_embed_loss(*given, margin=0.1, logit_scale=x.scale, **options, **where)

    return step


def _excluded(data: Data) -> Any:
    return _keys(data).exclude(data.query_ids, data.candidate_ids)


def _bands(data: Data) -> Any:
    return SimilarityBands(data.query_reference, data.candidate_reference, data.thresholds)


def _shared_bands(data: Data) -> Any:
    thresholds = [-0.2, 0.5]
    return SimilarityBands(data.query_reference, data.candidate_reference, thresholds)


nce = gr.multi_level_ranking_loss
CASES: dict[str, Case] = {
    "multi-level": Case(_of(nce)),
    "multi-level-columns": Case(_of(nce, direction="candidate_to_query")),
    "multi-level-symmetric": Case(_of(nce, direction="symmetric", positives="at_least")),
    "multi-level-sum": Case(_of(nce, reduction="sum", negatives="unrelated")),
    "multi-level-rows": Case(_of(nce, reduction="none"), local=True),
    "multi-level-blocks": Case(_of(nce, workspace_mb=0.0005)),  # 3 rows, or fewer, at a time
    "multi-level-symmetric-blocks": Case(_of(nce, direction="symmetric", workspace_mb=0.0005)),
    "multi-level-dot": Case(_of(nce, normalize=False)),
    "level-temperatures": Case(_numbers(nce, "level_temperatures", scaled=False)),
    "matryoshka": Case(_of(nce, matryoshka_dims=(8, 24), matryoshka_weights=(0.5, 1.0))),
    "matryoshka-symmetric": Case(_of(gr.clip_loss, matryoshka_dims=(8, 24))),
    "no-levels": Case(_of(gr.info_nce_loss, lambda data: None), pairs=True),
    "clip": Case(_of(gr.clip_loss, lambda data: None), pairs=True),
    "joint": Case(_of(gr.info_nce_loss, direction="joint"), pairs=True),
    "joint-no-levels": Case(
        _of(gr.info_nce_loss, lambda data: None, direction="joint"), pairs=True
    ),
    "memory": Case(_with_memory(nce)),
    "memory-symmetric": Case(_with_memory(gr.clip_loss)),
    "memory-rows": Case(_with_memory(nce, reduction="none"), local=True),
    "memory-sparse-all": Case(_with_memory(nce, _all_with_memory)),
    "memory-margin": Case(_with_memory(nce, _margin_with_memory, direction="symmetric")),
    "exclude": Case(_of(nce, _excluded)),
    "union": Case(_of(nce, lambda data: _excluded(data) | _shared_bands(data))),
    "bands": Case(_of(nce, _bands)),
    "bands-columns": Case(_of(nce, _bands, direction="candidate_to_query")),
    "sparse": Case(_of(nce, lambda data: _sparse(data.levels)), block=True),
    "sparse-symmetric": Case(
        _of(nce, lambda data: _sparse(data.levels), direction="symmetric"), block=True
    ),
    "sparse-all": Case(_of(nce, lambda data: _sparse(data.all_levels))),
    "sparse-all-columns": Case(
        _of(nce, lambda data: _sparse(data.all_levels), direction="candidate_to_query")
    ),
    "dense": Case(_of(nce, lambda data: DenseLevels(data.levels, LEVELS)), block=True),
    "dense-all": Case(_of(nce, lambda data: DenseLevels(data.all_levels, LEVELS))),
    "dense-all-columns": Case(
        _of(
            nce,
            lambda data: DenseLevels(data.all_levels, LEVELS),
            direction="candidate_to_query",
        )
    ),
    "margin": Case(_of(nce, lambda data: _keys(data).false_negative_margin(0.1))),
    "margin-symmetric": Case(
        _of(nce, lambda data: _keys(data).false_negative_margin(0.1), direction="symmetric")
    ),
    "gist": Case(_gist()),
    "gist-joint": Case(
        _gist(direction="joint", joint_blocks=("query_query", "candidate_candidate")), pairs=True
    ),
    "sup-con": Case(_of(gr.sup_con_loss)),
    "hard-negative": Case(_of(gr.hard_negative_nce_loss)),
    "rince-out": Case(_of(gr.rince_loss, form="out")),
    "unique-softmax-symmetric": Case(
        _of(gr.unique_softmax_loss, lambda d: _sparse(d.all_levels), direction="symmetric")
    ),
    "unique-softmax-matryoshka": Case(_of(gr.unique_softmax_loss, matryoshka_dims=(8, 24))),
    "hmlc": Case(_of(gr.hmlc_loss)),
    "csl": Case(_numbers(gr.csl_loss, "margins")),
    "pairwise-symmetric": Case(_of(gr.pairwise_ranking_loss, margin=0.5, direction="symmetric")),
    "cosent": Case(_of(gr.cosent_loss)),
    "list-net": Case(_of(gr.list_net_loss)),
    "softmax-ranking": Case(_numbers(gr.softmax_ranking_loss, "gains")),
    "circle": Case(_of(gr.circle_loss, scaled=False, gamma=8.0)),
    "multi-similarity": Case(_of(gr.multi_similarity_loss, scaled=False)),
    "siglip": Case(_numbers(gr.siglip_loss, "logit_bias")),
    "siglip-sum-matryoshka": Case(
        _numbers(gr.siglip_loss, "logit_bias", matryoshka_dims=(8, 24), reduction="sum")
    ),
    "smooth-ap": Case(_of(gr.smooth_ap_loss, scaled=False), ring=False),
    "smooth-ap-rows": Case(
        _of(gr.smooth_ap_loss, scaled=False, reduction="none"), local=True, ring=False
    ),
    "hierarchical-ap-symmetric": Case(
        _of(gr.hierarchical_ap_loss, scaled=False, direction="symmetric", temperature=0.05),
        ring=False,
    ),
    "smooth-ndcg-sparse": Case(
        _of(gr.smooth_ndcg_loss, lambda d: _sparse(d.all_levels), scaled=False, temperature=0.1),
        ring=False,
    ),
    "lambda": Case(_of(gr.lambda_loss, scaled=False, k=3, temperature=0.2), ring=False),
    "lambda-rows-memory": Case(
        _with_memory(gr.lambda_loss, scaled=False, k=3, scheme="ndcg2++", reduction="none"),
        local=True,
        ring=False,
    ),
    "lambda-symmetric": Case(
        _of(gr.lambda_loss, scaled=False, k=3, scheme="lambdarank", direction="symmetric"),
        ring=False,
    ),
    "head": Case(_head(_hinge)),
    "head-one-number": Case(_head(_largest)),
    "statistics": Case(_statistics(both=False), local=True),
    "statistics-symmetric": Case(_statistics(both=True), local=True),
}


def weights(n: int, dtype: torch.dtype) -> Tensor:
    """Upstream gradients of rows that are not uniform."""
    return 0.5 + torch.arange(n, dtype=dtype) % 5
