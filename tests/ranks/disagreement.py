"""Calls in which one rank differs from the others, and what each rank says of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
import torch.distributed as dist
from ranks.batches import Data, part_of, whole_batch
from torch import Tensor

import grainrank as gr
from grainrank import DenseLevels, GrainKeys, SparseLevels

WORLD, LAYOUT = 3, "uneven"
Scenario = Callable[[Data, bool], Tensor]  # a rank's part, and whether it is the odd one


def _keys(data: Data) -> GrainKeys:
    return GrainKeys(data.query_keys, data.candidate_keys)


def _call(data: Data, levels: Any = None, **options: Any) -> Tensor:
    given = {"temperature": 0.2, "group": dist.group.WORLD} | options
    loss: Tensor = gr.multi_level_ranking_loss(
        data.queries, data.candidates, _keys(data) if levels is None else levels, **given
    )
    return loss


def _embeddings(change: Callable[[Tensor], Tensor]) -> Scenario:
    """Embeddings that are others on the odd rank."""

    def scenario(data: Data, odd: bool) -> Tensor:
        if odd:
            q, c = change(data.queries), change(data.candidates)
            data = replace(data, queries=q, candidates=c)
        return _call(data)

    return scenario


def _keys_of(change: Callable[[Tensor], Tensor]) -> Scenario:
    def scenario(data: Data, odd: bool) -> Tensor:
        if odd:
            q, c = change(data.query_keys), change(data.candidate_keys)
            data = replace(data, query_keys=q, candidate_keys=c)
        return _call(data)

    return scenario


def _options(**of_odd: Any) -> Scenario:
    """Options that the odd rank has, and the others have not."""
    return lambda data, odd: _call(data, **(of_odd if odd else {}))


def _two(name: str, odd_value: Any, value: Any) -> Scenario:
    return lambda data, odd: _call(data, **{name: odd_value if odd else value})


def _levels(of_odd: Callable[[Data], Any], of_others: Callable[[Data], Any]) -> Scenario:
    return lambda data, odd: _call(data, (of_odd if odd else of_others)(data))


def _other_loss(data: Data, odd: bool) -> Tensor:
    loss = gr.info_nce_loss if odd else gr.list_net_loss
    given = {"temperature": 0.2, "group": dist.group.WORLD}
    result: Tensor = loss(data.queries, data.candidates, _keys(data), **given)
    return result


def _learned(queries: bool, candidates: bool) -> Scenario:
    """Sides that require a gradient on the odd rank alone."""

    def scenario(data: Data, odd: bool) -> Tensor:
        q = data.queries.clone().requires_grad_(odd and queries)
        c = data.candidates.clone().requires_grad_(odd and candidates)
        return _call(replace(data, queries=q, candidates=c))

    return scenario


def _no_grad(data: Data, odd: bool) -> Tensor:
    data = replace(data, queries=data.queries.clone().requires_grad_())
    with torch.no_grad() if odd else contextlib.nullcontext():
        return _call(data)


def _no_grad_of_temperature(data: Data, odd: bool) -> Tensor:
    t = torch.tensor(0.2, requires_grad=True)
    with torch.no_grad() if odd else contextlib.nullcontext():
        return _call(data, temperature=t)


def _memory(data: Data, odd: bool) -> Tensor:
    if not odd:
        return _call(data)
    levels = GrainKeys(data.query_keys, torch.cat([data.candidate_keys, data.memory_keys]))
    return _call(data, levels, memory=data.memory)


def _nan(data: Data, odd: bool) -> Tensor:
    q = data.queries.clone()
    if odd:
        q[-1, 0] = torch.nan
    return _call(replace(data, queries=q), nan="raise")


def _too_few_keys(data: Data, odd: bool) -> Tensor:
    return _call(data, GrainKeys(data.query_keys[int(odd) :], data.candidate_keys))


def _dense(columns: int) -> Callable[[Data], Any]:
    """A matrix with some columns too many."""

    def levels(data: Data) -> Any:
        matrix = torch.zeros(len(data.queries), len(data.candidates) + columns, dtype=torch.int8)
        return DenseLevels(matrix, 2)

    return levels


def _sparse(data: Data) -> Any:
    row, column = data.levels.nonzero(as_tuple=True)
    entries = row, column, data.levels[row, column]
    return SparseLevels.from_entries(entries, tuple(data.levels.shape), 3)


def _read_levels(data: Data, odd: bool) -> Tensor:
    """L as it is in the data."""
    return _call(data, DenseLevels(data.levels.clamp(max=2 if odd else 3)))


def _empty(data: Data, odd: bool) -> Tensor:
    q, c = data.queries[:0], data.candidates[:0]
    return _call(replace(data, queries=q, candidates=c), _keys(part_of_none(data)))


def _empty_candidates(data: Data, odd: bool) -> Tensor:
    none = part_of_none(data)
    data = replace(data, candidates=data.candidates[:0], candidate_keys=none.candidate_keys)
    return _call(data)


def part_of_none(data: Data) -> Data:
    return replace(data, query_keys=data.query_keys[:0], candidate_keys=data.candidate_keys[:0])


def _columns_of_all(data: Data, odd: bool) -> Tensor:
    """The odd rank has judged the candidates of all ranks."""
    levels = data.all_levels if odd else data.levels
    return _call(data, DenseLevels(levels, 3))


SCENARIOS: dict[str, Scenario] = {
    "features": _embeddings(lambda x: x[:, :8]),
    "dtype": _embeddings(Tensor.double),
    "requires-grad-queries": _learned(True, False),
    "requires-grad-candidates": _learned(False, True),
    "no-grad": _no_grad,
    "no-grad-of-temperature": _no_grad_of_temperature,
    "temperature-learned": lambda data, odd: _call(
        data, temperature=torch.tensor(0.2, requires_grad=odd)
    ),
    "temperature": _two("temperature", 0.1, 0.2),
    "direction": _options(direction="symmetric"),
    "reduction": _options(reduction="sum"),
    "transport": _options(transport="ring"),
    "normalize": _options(normalize=False),
    "matryoshka": _two("matryoshka_dims", (8, 24), (16, 24)),
    "level-weights": _options(level_weights=[0.5, 0.5, 1.0]),
    "level-weights-values": _two("level_weights", [0.5, 0.5, 1.0], [0.1, 0.5, 1.0]),
    "positives": _options(positives="at_least"),
    "loss": _other_loss,
    "max-level": _read_levels,
    "key-dtype": _keys_of(Tensor.int),
    "number-of-keys": _keys_of(lambda x: x[:, :2]),
    "match": _levels(
        lambda data: GrainKeys(data.query_keys, data.candidate_keys, match="count"), _keys
    ),
    "source": _levels(_sparse, _keys),
    "excluded": _levels(
        lambda data: _keys(data).exclude(data.query_ids, data.candidate_ids), _keys
    ),
    "memory": _memory,
    "columns": _levels(_dense(1), _dense(0)),
    "columns-of-all": _columns_of_all,
    "rows-of-keys": _too_few_keys,
    "nan": _nan,
    "unknown-option": _options(sharpness=1.0),
    "value": _options(level_weights=[1.0, torch.nan, 1.0]),
    "empty": _empty,
    "empty-candidates": _empty_candidates,
}


def _uneven_memory(data: Data, odd: bool) -> Tensor:
    """As many as a rank has, none here."""
    memory, keys = data.memory, data.memory_keys
    if odd:
        memory, keys = memory[:0], keys[:0]
    levels = GrainKeys(data.query_keys, torch.cat([data.candidate_keys, keys]))
    return _call(data, levels, memory=memory)


def _by_keyword(data: Data, odd: bool) -> Tensor:
    given = {"queries": data.queries, "candidates": data.candidates, "levels": _keys(data)}
    loss: Tensor = gr.multi_level_ranking_loss(**given, temperature=0.2, group=dist.group.WORLD)
    return loss


def _guides_by_keyword(data: Data, odd: bool) -> Tensor:
    guides = {
        "guide_queries": data.query_reference,
        "guide_candidates": data.candidate_reference,
    }
    loss: Tensor = gr.gist_embed_loss(
        data.queries, data.candidates, **guides, temperature=0.2, group=dist.group.WORLD
    )
    return loss


#: Calls that are no disagreement.
AGREEMENTS: dict[str, Scenario] = {
    "uneven-memory": _uneven_memory,
    "by-keyword": _by_keyword,
    "guides-by-keyword": _guides_by_keyword,
    "workspace": _options(workspace_mb=8.0),
    "backend": _options(backend="reference"),
}


def _said(scenario: Scenario, data: Data, odd: bool) -> str:
    try:
        loss = scenario(data, odd)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return f"loss {float(loss.detach()):.4f}"


def _proof(data: Data, group: Any) -> Tensor:
    """That the ranks still understand one another."""
    q, c = (x.clone().requires_grad_() for x in (data.queries, data.candidates))
    loss = _call(replace(data, queries=q, candidates=c), group=group)
    loss.backward()
    assert c.grad is not None
    return torch.stack([loss.detach(), c.grad.sum()])


def proof_of_one_process() -> tuple[Tensor, list[Tensor]]:
    """The loss, and the parts of each rank's gradient."""
    whole = whole_batch(LAYOUT, WORLD, torch.float32, 0, False)
    q, c = (x.clone().requires_grad_() for x in (whole.queries, whole.candidates))
    loss = _call(replace(whole, queries=q, candidates=c), group=None)
    loss.backward()
    assert c.grad is not None
    sizes = [len(part_of(whole, LAYOUT, WORLD, k).candidates) for k in range(WORLD)]
    return loss.detach(), [WORLD * part.sum() for part in c.grad.split(sizes)]


def _groups(data: Data, rank: int) -> dict[str, str]:
    """What is said of groups of other kinds."""
    pair = dist.new_group([0, 1])
    alone = [dist.new_group([k]) for k in range(WORLD)][rank]
    groups = {"number": 7, "pair": pair, "alone": alone}
    return {
        name: _said(lambda data, _, group=group: _call(data, group=group), data, False)
        for name, group in groups.items()
    }


def on_rank(
    rank: int, world: int
) -> tuple[dict[tuple[str, int], tuple[str, Tensor]], dict[str, str], dict[str, str]]:
    """What is said of each scenario, with each odd rank, and the proof after it."""
    data = part_of(whole_batch(LAYOUT, world, torch.float32, 0, False), LAYOUT, world, rank)
    said = {}
    for name, scenario in SCENARIOS.items():
        for odd in (0, 1, 2):
            text = _said(scenario, data, rank == odd)
            said[name, odd] = text, _proof(data, dist.group.WORLD)
    agreed = {name: _said(s, data, rank == 1) for name, s in AGREEMENTS.items()}
    return said, agreed, _groups(data, rank)
