"""Training steps of a two-tower model on the ranks, and on one process."""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from ranks.batches import D, Data, part_of, whole_batch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import grainrank as gr
from grainrank import GrainKeys

HIDDEN, OUT = 10, 7  # neither is a multiple of 3 ranks
Results = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """`way`: how a step is made.

    plain: the model learns its temperature, and the loss is a function.
    accumulated: so, of two micro-batches.
    checkpointed: so, with the activations computed again.
    module: the loss is a module with the temperature, which no wrapper knows.
    grad-cache: so, in two passes by chunks (Gao et al. 2021).
    inside: the loss module is a part of the model.
    """

    wrapper: str  # "ddp", "fsdp", "accelerate", or "" for one process
    way: str = "plain"
    layout: str = "uneven"
    transport: str = "gather"
    direction: str = "query_to_candidate"

    @property
    def id(self) -> str:
        return "-".join((self.wrapper, self.way, self.layout, self.transport, self.direction))

    def of_one_process(self) -> Case:
        """What gives the same gradients without ranks."""
        same = {"checkpointed": "plain", "grad-cache": "module"}
        return Case("", same.get(self.way, self.way), self.layout, direction=self.direction)


class Towers(nn.Module):
    def __init__(self, learned: bool, checkpointed: bool) -> None:
        super().__init__()
        self.query_tower, self.candidate_tower = (
            nn.Sequential(nn.Linear(D, HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, OUT)) for _ in range(2)
        )
        # FSDP2 shards along the first dimension, and takes no scalar.
        self.log_temperature = nn.Parameter(torch.tensor([-1.5])) if learned else None
        self.checkpointed = checkpointed

    def forward(self, queries: Tensor, candidates: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        if self.checkpointed:
            q = checkpoint(self.query_tower, queries, use_reentrant=False)
            c = checkpoint(self.candidate_tower, candidates, use_reentrant=False)
        else:
            q, c = self.query_tower(queries), self.candidate_tower(candidates)
        t = self.log_temperature
        return q, c, None if t is None else t.exp()


class WithLoss(nn.Module):
    """A model that returns its loss."""

    def __init__(self, towers: Towers, loss: nn.Module) -> None:
        super().__init__()
        self.towers, self.loss = towers, loss

    def forward(self, data: Data, where: dict[str, Any]) -> Tensor:
        q, c, _ = self.towers(data.queries, data.candidates)
        loss: Tensor = self.loss(q, c, _keys(data), **where)
        return loss


def _keys(data: Data) -> GrainKeys:
    return GrainKeys(data.query_keys, data.candidate_keys)


class Trainer:
    """A model, its loss, and how one of the wrappers steps with them."""

    def __init__(self, case: Case, dtype: torch.dtype) -> None:
        self.case = case
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.model: Any = Towers(case.way in _PLAIN, case.way == "checkpointed").to(dtype)
        options: dict[str, Any] = {"direction": case.direction}
        if case.way not in _PLAIN:
            options["temperature"] = nn.Parameter(torch.tensor(0.25, dtype=dtype))
        self.loss = gr.MultiLevelRankingLoss(**options)
        self.where: dict[str, Any] = {}
        if case.wrapper:
            self.where = {"group": dist.group.WORLD, "transport": case.transport}
        else:
            self.where = {"backend": "reference"}
        if case.way == "inside":
            self.model = WithLoss(self.model, self.loss)
        self.plain_model = self.model
        self.parameters = dict(self.model.named_parameters())
        if case.way in ("module", "grad-cache"):
            self.parameters |= dict(self.loss.named_parameters())
        self.backward = Tensor.backward
        self._wrap()
        # After FSDP has put its own parameters in place.
        self.parameters = {
            name: dict(self.plain_model.named_parameters()).get(name, x)
            for name, x in self.parameters.items()
        }
        self.optimizer = torch.optim.SGD(self.parameters.values(), lr=0.5, momentum=0.9)

    def _wrap(self) -> None:
        if self.case.wrapper == "ddp":
            self.model = nn.parallel.DistributedDataParallel(self.model)
        elif self.case.wrapper == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for part in (self.model.query_tower, self.model.candidate_tower, self.model):
                fully_shard(part, mesh=mesh)
        elif self.case.wrapper == "accelerate":
            from accelerate import Accelerator

            rank, world = str(dist.get_rank()), str(dist.get_world_size())
            ranks = dict.fromkeys(("RANK", "LOCAL_RANK"), rank)
            worlds = dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), world)
            os.environ |= {**ranks, **worlds, "OMP_NUM_THREADS": "1"}
            accelerator = Accelerator(cpu=True)
            self.model = accelerator.prepare(self.model)
            self.backward = accelerator.backward

    @contextlib.contextmanager
    def _step_of(self, last: bool) -> Any:
        """Ranks exchange gradients in the last one."""
        if self.case.wrapper == "fsdp":
            self.model.set_requires_gradient_sync(last)
        apart = self.case.wrapper == "ddp" and not last
        with self.model.no_sync() if apart else contextlib.nullcontext():
            yield

    def gradients_of(self, batches: Sequence[Data]) -> Tensor:
        """Leaves the gradients in the parameters; the loss, the mean of the micro-batches'."""
        self.optimizer.zero_grad()
        losses = []
        for i, data in enumerate(batches):
            if self.case.way == "grad-cache":
                losses.append(self._two_passes(data))
                continue
            with self._step_of(i + 1 == len(batches)):
                loss = self._loss(data)
                self.backward(loss / len(batches))
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    def _loss(self, data: Data) -> Tensor:
        if self.case.way == "inside":
            loss: Tensor = self.model(data, self.where)
            return loss
        q, c, temperature = self.model(data.queries, data.candidates)
        if temperature is None:
            loss = self.loss(q, c, _keys(data), **self.where)
            return loss
        options = {"temperature": temperature, "direction": self.case.direction}
        loss = gr.multi_level_ranking_loss(q, c, _keys(data), **options, **self.where)
        return loss

    def _two_passes(self, data: Data) -> Tensor:
        chunks = list(
            zip(data.queries.tensor_split(3), data.candidates.tensor_split(3), strict=True)
        )
        with torch.no_grad():
            embedded = [self.model(*chunk)[:2] for chunk in chunks]
        q, c = (torch.cat(parts).requires_grad_() for parts in zip(*embedded, strict=True))
        loss: Tensor = self.loss(q, c, _keys(data), **self.where)
        loss.backward()
        assert q.grad is not None
        assert c.grad is not None
        cached = zip(q.grad.tensor_split(3), c.grad.tensor_split(3), strict=True)
        for i, (chunk, (d_q, d_c)) in enumerate(zip(chunks, cached, strict=True)):
            with self._step_of(i + 1 == len(chunks)):
                a, b, _ = self.model(*chunk)
                torch.autograd.backward([a, b], [d_q, d_c])
        return loss.detach()

    def gradients(self) -> Results:
        return {f"d_{name}": _whole(x.grad) for name, x in self.parameters.items()}

    def values(self) -> Results:
        return {name: _whole(x.detach()) for name, x in self.parameters.items()}


_PLAIN = ("plain", "accumulated", "checkpointed")


def _whole(x: Any) -> Tensor:
    found: Tensor = x.full_tensor() if hasattr(x, "full_tensor") else x
    return found.clone()


def batches_of(case: Case, world: int, seed: int) -> list[Data]:
    """The whole micro-batches of a step."""
    seeds = (seed, seed + 1000) if case.way == "accumulated" else (seed,)
    return [whole_batch(case.layout, world, torch.float32, s, False) for s in seeds]


def converted(data: Data, dtype: torch.dtype) -> Data:
    return replace(data, queries=data.queries.to(dtype), candidates=data.candidates.to(dtype))


def parts_of(case: Case, world: int, seed: int, rank: int, dtype: torch.dtype) -> list[Data]:
    whole = batches_of(case, world, seed)
    return [converted(part_of(data, case.layout, world, rank), dtype) for data in whole]


def gradients_on_rank(rank: int, world: int, cases: list[Case], draws: int) -> list[list[Results]]:
    """Of each case and draw."""
    found = []
    for case in cases:
        trainer = Trainer(case, torch.float32)
        of_case = []
        for seed in range(draws):
            loss = trainer.gradients_of(parts_of(case, world, seed, rank, torch.float32))
            of_case.append({"loss": loss, **trainer.gradients()})
        found.append(of_case)
    return found


def gradients_on_one_process(
    case: Case, world: int, draws: int, dtype: torch.dtype
) -> list[Results]:
    trainer = Trainer(case.of_one_process(), dtype)
    found = []
    for seed in range(draws):
        batches = [converted(data, dtype) for data in batches_of(case, world, seed)]
        loss = trainer.gradients_of(batches)
        found.append({"loss": loss, **trainer.gradients()})
    return found


def _trained(trainer: Trainer, steps: Sequence[list[Data]]) -> Results:
    losses = []
    for batches in steps:
        losses.append(trainer.gradients_of(batches))
        trainer.optimizer.step()
    return {"losses": torch.stack(losses), **trainer.values()}


def trained_on_rank(rank: int, world: int, cases: list[Case], steps: int) -> list[Results]:
    """The losses of some steps, and the parameters after them, in float64."""
    found = []
    for case in cases:
        given = [parts_of(case, world, seed, rank, torch.float64) for seed in range(steps)]
        found.append(_trained(Trainer(case, torch.float64), given))
    return found


def trained_on_one_process(case: Case, world: int, steps: int) -> Results:
    given = [
        [converted(data, torch.float64) for data in batches_of(case, world, seed)]
        for seed in range(steps)
    ]
    return _trained(Trainer(case.of_one_process(), torch.float64), given)


def on_rank(
    rank: int, world: int, cases: list[Case], draws: int, trained: list[Case], steps: int
) -> tuple[list[list[Results]], list[Results]]:
    return (
        gradients_on_rank(rank, world, cases, draws),
        trained_on_rank(rank, world, trained, steps),
    )


def has_accelerate() -> bool:
    return importlib.util.find_spec("accelerate") is not None
