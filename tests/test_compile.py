"""`torch.compile(fullgraph=True)`: the compiled step equals the eager one, forward and backward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

import grainrank
from grainrank import (
    DenseLevels,
    GrainKeys,
    MultiLevelRankingLoss,
    SparseLevels,
    level_statistics,
    multi_level_ranking_loss,
)
from grainrank.testing import Shape, make_dense_levels, make_inputs

Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def step_mean(q: Tensor, c: Tensor, scale: Tensor, q_keys: Tensor, c_keys: Tensor) -> Tensor:
    loss: Tensor = multi_level_ranking_loss(
        q * 2, c, GrainKeys(q_keys, c_keys), logit_scale=scale.exp()
    )
    return loss * 3


def step_none(q: Tensor, c: Tensor, scale: Tensor, q_keys: Tensor, c_keys: Tensor) -> Tensor:
    levels = GrainKeys(q_keys, c_keys).exclude(q_keys[:, -1], c_keys[:, 0])
    loss: Tensor = multi_level_ranking_loss(
        q, c, levels, temperature=scale, reduction="none", positives="at_least"
    )
    return (loss * torch.arange(len(loss))).sum()


def step_statistics(q: Tensor, c: Tensor, scale: Tensor, q_keys: Tensor, c_keys: Tensor) -> Tensor:
    stats = level_statistics(q, c, GrainKeys(q_keys, c_keys), logit_scale=scale)
    gap = (stats.highest[:, 0] - stats.lowest[:, -1]) * (stats.count[:, -1] > 0)
    return gap.relu().sum() + (stats.lse[:, 0] + stats.total[:, 0]).sin().sum()


def inputs(shape: Shape) -> tuple[Tensor, ...]:
    q, c, *keys = make_inputs(shape, seed=shape.N)
    scale = torch.tensor(1.5)
    return q.requires_grad_(), c.requires_grad_(), scale.requires_grad_(), *keys


def run(step: Step, shape: Shape) -> list[Tensor]:
    args = inputs(shape)
    loss = step(*args)
    loss.backward()
    return [loss.detach(), *(x.grad for x in args[:3] if x.grad is not None)]


@pytest.mark.parametrize(
    ("step", "compiler"),
    [(step_mean, "inductor"), (step_none, "aot_eager"), (step_statistics, "aot_eager")],
)
def test_steps(step: Step, compiler: str) -> None:
    compiled = torch.compile(step, fullgraph=True, backend=compiler)
    expected, got = run(step, Shape(33, 40, 16, 3)), run(compiled, Shape(33, 40, 16, 3))
    assert len(got) == 4
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b)


def test_dynamic_shapes_do_not_compile_again() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step_mean, fullgraph=True, dynamic=True, backend=counter)
    frames = set()
    for shape in (Shape(33, 40, 16, 3), Shape(65, 70, 16, 3), Shape(17, 130, 16, 3)):
        for a, b in zip(run(step_mean, shape), run(compiled, shape), strict=True):
            torch.testing.assert_close(a, b)
        frames.add(counter.frame_count)
    assert len(frames) == 1


def test_reference_backend_and_module() -> None:
    """Options, dense levels with a given L, and statistics, in one graph."""
    loss = MultiLevelRankingLoss(temperature=0.2, backend="reference", return_stats=True)
    shape = Shape(9, 12, 8)
    q, c, *_ = make_inputs(shape)
    dense = make_dense_levels(shape, 3)

    def step(q: Tensor, c: Tensor, dense: Tensor) -> Any:
        return loss(q, c, DenseLevels(dense, max_level=3))

    expected, expected_stats = step(q, c, dense)
    got, got_stats = torch.compile(step, fullgraph=True, backend="aot_eager")(q, c, dense)
    torch.testing.assert_close(got, expected)
    for a, b in zip(got_stats, expected_stats, strict=True):
        torch.testing.assert_close(a, b)


LOSSES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "info_nce joint": (grainrank.info_nce_loss, {"temperature": 0.2, "direction": "joint"}),
    "clip prefixes": (grainrank.clip_loss, {"temperature": 0.2, "matryoshka_dims": (4, 16)}),
    "sup_con": (grainrank.sup_con_loss, {"temperature": 0.2}),
    "hard_negative_nce": (grainrank.hard_negative_nce_loss, {"temperature": 0.2}),
    "rince": (grainrank.rince_loss, {"level_temperatures": [0.3, 0.2, 0.1]}),
    "rince out": (grainrank.rince_loss, {"temperature": 0.2, "form": "out"}),
    "hmlc": (grainrank.hmlc_loss, {"temperature": 0.2}),
    "csl": (grainrank.csl_loss, {"temperature": 0.2}),
    "pairwise": (grainrank.pairwise_ranking_loss, {"temperature": 0.2, "margin": 1.0}),
    "cosent": (grainrank.cosent_loss, {"temperature": 0.2}),
    "list_net": (grainrank.list_net_loss, {"temperature": 0.2}),
    "softmax_ranking": (grainrank.softmax_ranking_loss, {"temperature": 0.2}),
    "unique_softmax": (grainrank.unique_softmax_loss, {"temperature": 0.2}),
    "circle": (grainrank.circle_loss, {}),
    "multi_similarity": (grainrank.multi_similarity_loss, {}),
    "siglip": (grainrank.siglip_loss, {"temperature": 0.2, "logit_bias": -2.0}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss(name: str) -> None:
    loss, options = LOSSES[name]
    q, c, _, q_keys, c_keys = inputs(Shape(12, 17, 16, 3))

    def step(q: Tensor, c: Tensor) -> Tensor:
        value: Tensor = loss(q, c, GrainKeys(q_keys, c_keys), **options)
        return value

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    results = []
    for run in (step, compiled):
        value = run(q, c)
        results.append((value, *torch.autograd.grad(value, [q, c])))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def test_filtered_levels_with_a_memory() -> None:
    """The margin's own sweep, a union, excluded pairs and a queue, in one graph."""
    q, c, _, q_keys, c_keys = inputs(Shape(12, 17, 16, 3))
    memory = torch.randn(5, 16, generator=torch.Generator().manual_seed(0))
    keys = torch.cat([c_keys, c_keys[:5]])
    sparse = SparseLevels.from_qrels(range(12), range(22), {(1, 2): 2, (3, 20): -1})
    ids = torch.arange(22)

    def step(q: Tensor, c: Tensor) -> Tensor:
        levels = (GrainKeys(q_keys, keys) | sparse).exclude(ids[:12], ids)
        levels = levels.false_negative_margin(0.1)
        loss: Tensor = grainrank.clip_loss(q, c, levels, temperature=0.2, memory=memory)
        return loss

    expected = step(q, c)
    got = torch.compile(step, fullgraph=True, backend="aot_eager")(q, c)
    for a, b in zip(
        (got, *torch.autograd.grad(got, [q, c])),
        (expected, *torch.autograd.grad(expected, [q, c])),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_batch_against_itself() -> None:
    """One tensor on both sides, of the embeddings and of the keys."""
    q, _, _, keys, _ = inputs(Shape(12, 17, 16, 3))

    def step(q: Tensor) -> Tensor:
        ids = torch.arange(12)
        levels = GrainKeys(keys, keys).exclude(ids, ids)
        loss: Tensor = grainrank.sup_con_loss(q, q, levels, temperature=0.2)
        return loss + multi_level_ranking_loss(q, q, levels, temperature=0.2)

    expected = torch.autograd.grad(step(q), q)
    got = torch.autograd.grad(torch.compile(step, fullgraph=True, backend="aot_eager")(q), q)
    torch.testing.assert_close(got, expected)


# Dynamo (torch 2.13) looks at it itself, where a graph ends.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize(
    "loss",
    [grainrank.smooth_ap_loss, grainrank.hierarchical_ap_loss, grainrank.lambda_loss],
    ids=lambda loss: loss.__name__,
)
def test_losses_on_ranks_stand_between_two_graphs(loss: Any) -> None:
    """The number of positives is known while they run; no warning, and the same numbers."""
    q, c = (torch.randn(n, 8, generator=torch.Generator().manual_seed(n)) for n in (6, 9))
    keys = [torch.arange(n)[:, None] % 3 for n in (6, 9)]

    def step(q: Tensor, c: Tensor) -> Tensor:
        return loss(q * 2, c.tanh(), GrainKeys(*keys)) * 3  # type: ignore[no-any-return]

    results = []
    for function in (step, torch.compile(step, backend="aot_eager")):
        inputs = [x.clone().requires_grad_() for x in (q, c)]
        value = function(*inputs)
        results.append([value.detach(), *torch.autograd.grad(value, inputs)])
    for eager, compiled in zip(*results, strict=True):
        assert torch.equal(eager, compiled)
