"""DTensors on 4 ranks: losses that are computed, and calls that are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

import grainrank as gr
from grainrank import DenseLevels, GrainKeys, SimilarityBands
from grainrank.testing import Inputs, Shape, make_inputs

WORLD = 4
SHAPES = {
    "even": Shape(8, 12, 6),
    "uneven": Shape(10, 13, 6),  # the last rank has 1 query and 1 candidate
    "few": Shape(3, 5, 6),  # and here none
}
#: Name of the mesh, and the dimension that the batch is spread over.
MESHES = {"line": 0, "rows": 0, "columns": 1}
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    mesh: str = "line"
    shape: str = "uneven"
    candidates: str = "shard"  # or "replicate", "both" with the queries
    keys: str = "sharded"  # DTensors like these, "replicated" ones, or "plain" parts
    temperature: str = "dtensor"  # or "plain", "number"
    transport: str = "gather"
    direction: str = "query_to_candidate"
    loss: str = "multi-level"

    @property
    def id(self) -> str:
        return "-".join(map(str, self.__dict__.values()))


def _loss(
    case: Case, q: Tensor, c: Tensor, keys: tuple[Tensor, Tensor], more: tuple[Tensor, ...]
) -> tuple[Callable[..., Tensor], tuple[Any, ...], dict[str, Any]]:
    """A loss and its arguments; `more`: reference embeddings of both sides, memory, its keys."""
    levels: Any = GrainKeys(*keys)
    options: dict[str, Any] = {"direction": case.direction}
    if case.loss == "gist":
        return gr.gist_embed_loss, (q, c, *more[:2], levels), options | {"margin": 0.1}
    if case.loss == "bands":
        levels = SimilarityBands(more[0], more[1], [-0.2, 0.5])
    if case.loss == "excluded":
        levels = levels.exclude(keys[0][:, 0], keys[1][:, 0]) | SimilarityBands(*more[:2], [0.5])
    if case.loss == "rows":
        return gr.multi_level_ranking_loss, (q, c, levels), options | {"reduction": "none"}
    if case.loss == "siglip":
        return gr.siglip_loss, (q, c, levels), options | {"logit_bias": -2.0}
    return gr.multi_level_ranking_loss, (q, c, levels), options


def _inputs(case: Case) -> tuple[Inputs, tuple[Tensor, ...]]:
    shape = SHAPES[case.shape]
    inputs = make_inputs(shape, torch.float64, seed=3)
    reference = make_inputs(shape, torch.float64, seed=4)
    return inputs, (reference.queries, reference.candidates)


def _found(loss: Tensor, q: Tensor, c: Tensor, t: Any) -> Results:
    (loss * 1.5).sum().backward()
    found = {"loss": loss.detach(), "d_queries": q.grad, "d_candidates": c.grad}
    if loss.dim() > 0:
        # A plain tensor of the own rows.
        del found["loss"]
    if isinstance(t, Tensor):
        found["d_temperature"] = t.grad
    return {name: _full(x) for name, x in found.items()}


def _full(x: Any) -> Tensor:
    return x.full_tensor() if isinstance(x, DTensor) else x


def _temperature(case: Case, mesh: DeviceMesh | None) -> Any:
    if case.temperature == "number":
        return 0.2
    t = torch.tensor(0.2, dtype=torch.float64)
    if mesh is not None and case.temperature == "dtensor":
        t = distribute_tensor(t, mesh, [Replicate()] * mesh.ndim)
    return t.requires_grad_()


def on_one_process(case: Case) -> Results:
    inputs, more = _inputs(case)
    q, c = (x.clone().requires_grad_() for x in inputs[:2])
    t = _temperature(case, None)
    loss, args, options = _loss(case, q, c, inputs[2:], more)
    return _found(loss(*args, temperature=t, backend="reference", **options), q, c, t)


def _meshes() -> dict[str, DeviceMesh]:
    square = init_device_mesh("cpu", (2, 2), mesh_dim_names=("batch", "model"))
    return {
        "line": init_device_mesh("cpu", (WORLD,)),
        "rows": square,
        "columns": square,
        "other": DeviceMesh("cpu", [0, 2, 1, 3]),
    }


def _on_ranks(case: Case, meshes: dict[str, DeviceMesh]) -> Results:
    mesh = meshes[case.mesh]
    whole = [Replicate()] * mesh.ndim
    sharded = [Shard(0) if i == MESHES[case.mesh] else Replicate() for i in range(mesh.ndim)]
    of_queries = whole if case.candidates == "both" else sharded
    of_candidates = sharded if case.candidates == "shard" else whole
    inputs, more = _inputs(case)
    q = distribute_tensor(inputs.queries, mesh, of_queries).requires_grad_()
    c = distribute_tensor(inputs.candidates, mesh, of_candidates).requires_grad_()

    def given(x: Tensor, placements: Any) -> Tensor:
        if case.keys == "replicated":
            placements = whole
        spread = distribute_tensor(x, mesh, placements)
        return spread.to_local() if case.keys == "plain" else spread

    keys = given(inputs.query_keys, of_queries), given(inputs.candidate_keys, of_candidates)
    more = given(more[0], of_queries), given(more[1], of_candidates)
    t = _temperature(case, mesh)
    loss, args, options = _loss(case, q, c, keys, more)
    return _found(loss(*args, temperature=t, transport=case.transport, **options), q, c, t)


def _with_a_mesh_as_group(meshes: dict[str, DeviceMesh], rank: int) -> dict[str, Results]:
    """Plain tensors, the even batch of the default case."""
    inputs, _ = _inputs(Case(shape="even"))
    found = {}
    for name, mesh, part in (
        ("line", meshes["line"], rank),
        ("batch", meshes["rows"]["batch"], rank // 2),
    ):
        world = mesh.size()
        q, c, query_keys, candidate_keys = (x.chunk(world)[part].clone() for x in inputs)
        q.requires_grad_()
        c.requires_grad_()
        levels = GrainKeys(query_keys, candidate_keys)
        t = _temperature(Case(), None)
        loss = gr.multi_level_ranking_loss(q, c, levels, temperature=t, group=mesh)
        of_rank = _found(loss, q, c, t)
        of_rank["d_queries"] /= world
        of_rank["d_candidates"] /= world
        found[name] = of_rank
    return found


def _refused(meshes: dict[str, DeviceMesh]) -> dict[str, str]:
    """The error of each call."""
    line, square = meshes["line"], meshes["rows"]
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
    numbers = torch.arange(8)[:, None]

    def on(mesh: DeviceMesh, *placements: Any, of: Tensor = x) -> Any:
        return distribute_tensor(of, mesh, list(placements))

    def call(q: Any, c: Any, levels: Any = None, **options: Any) -> Callable[[], Tensor]:
        given = {"temperature": 0.1} | options
        return lambda: gr.multi_level_ranking_loss(q, c, levels, **given)

    one = on(line, Shard(0))
    two = on(square, Shard(0), Replicate())
    partial = DTensor.from_local(x, line, [Partial()])
    t = torch.full((4,), 0.1)
    keys = GrainKeys(on(line, Shard(0), of=numbers), on(line, Shard(0), of=numbers))
    strange = GrainKeys(on(line, Shard(0), of=numbers), on(meshes["other"], Shard(0), of=numbers))
    scenarios = {
        "shard-1": call(one, on(line, Shard(1))),
        "partial": call(one, partial),
        "beside-plain-candidates": call(one, x),
        "beside-plain-queries": call(x, one),
        "keys-beside-plain": call(x, x, keys),
        "keys-on-another-mesh": call(one, one, strange),
        "temperature-sharded": call(one, one, temperature=on(line, Shard(0), of=t)),
        "two-meshes": call(one, on(meshes["other"], Shard(0))),
        "meshes-of-other-shape": call(two, one),
        "two-dimensions-at-once": call(
            on(square, Shard(0), Shard(0)), on(square, Shard(0), Shard(0))
        ),
        "a-dimension-each": call(two, on(square, Replicate(), Shard(0))),
        "features-on-the-other": call(two, on(square, Shard(0), Shard(1))),
        "replicated-on-two": call(
            on(square, Replicate(), Replicate()), on(square, Replicate(), Replicate())
        ),
        "another-group": call(two, two, group=square.get_group(1)),
        "dense-levels": call(one, one, DenseLevels(on(line, Shard(0), of=numbers % 2), 1)),
        "two-dimensional-group": call(x, x, group=square),
    }
    found = {}
    for name, scenario in scenarios.items():
        try:
            scenario()
            found[name] = "nothing"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def on_rank(
    rank: int, world: int, cases: list[Case]
) -> tuple[list[Results | str], dict[str, Results], dict[str, str]]:
    meshes = _meshes()
    results: list[Results | str] = []
    for case in cases:
        try:
            results.append(_on_ranks(case, meshes))
        except Exception as error:
            results.append(f"{type(error).__name__}: {error}")
    refused = _refused(meshes)
    # Last: what was refused has left nothing behind.
    return results, _with_a_mesh_as_group(meshes, rank), refused
