"""A loss over ranks, under DDP or FSDP, beside one process on the whole batch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from ..distributed.collectives import gather_equal
from ..distributed.groups import resolve_group
from ..testing import Draw, Inputs, assert_accurate
from ..validation import check_choice
from .encoders import LAYOUTS, Encoders, Layout, Step, part_of, spread, whole_batch
from .verdicts import Verdict, explain

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Wrapper = Literal["ddp", "fsdp"]
StepLoss = Callable[[Step, Any], Tensor]
Found = dict[str, Tensor]

_DRAWS = 8  # in float32: a scalar of the reference is sometimes luckily exact
_TOLERANCE = 1e-9  # in float64, of the largest element
_RATE = 0.3
_NUMBERS = ("log_scale", "bias")  # parameters that are no encoder's


@dataclass(frozen=True)
class Plan:
    """How a loss is tried."""

    layout: Layout = "even"
    wrapper: Wrapper = "ddp"
    pairs: bool = False  # as many candidates as queries on each rank
    bias: bool = False  # a learned one
    micro_batches: int = 1  # gradients accumulated, and synchronised with the last
    steps: int = 1  # of SGD; with more than one their sum is compared


def check_gradients(
    loss: Callable[[Tensor, Tensor, Tensor, Any], Tensor],
    group: Any,
    *,
    reference: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None,
    layout: Layout = "even",
    wrapper: Wrapper = "ddp",
    dtype: torch.dtype | None = None,
    global_loss: bool = False,
    case: str = "loss",
) -> Verdict:
    """Compares the gradients of a loss over ranks with those of one process on the whole batch.

    Every rank calls this. Two linear encoders and a learned scale are trained for one step, each
    rank with its part of a batch; then each rank does the same with all of it, alone.

    Args:
        loss: `loss(queries, candidates, scale, group)` of a rank's embeddings `[N, D]`, where
            candidate i belongs to query i, and the 0-d scale of the logits.
        group: a `ProcessGroup`, or a `DeviceMesh` with one dimension, of 2 ranks or more.
        reference: `reference(queries, candidates, scale)` on one process; None: `loss` with
            `group=None`.
        layout: `"even"`, `"uneven"`, or `"empty"`: uneven, and rank 1 without rows.
        wrapper: `"ddp"` (default), or `"fsdp"` for `fully_shard`.
        dtype: torch.float64 or torch.float32; None: float64 on CPU, float32 elsewhere.
        global_loss: whether a loss that differs between the ranks is WRONG too.
        case: a name for the verdict.

    Returns:
        A `Verdict`, the same judgement on every rank. In float64 a gradient is right within 1e-9
        of its largest element; in float32 by the rule of `grainrank.testing`, on 8 draws.

    Raises:
        TypeError, ValueError: a group, layout or wrapper that is none.

    Example:
        Under `torchrun`, with a loss of your own:

            verdict = check_gradients(my_loss, torch.distributed.group.WORLD)
            print(verdict.ok, verdict.explanation)
    """

    def of_step(step: Step, group: Any) -> Tensor:
        return loss(step.queries, step.candidates, step.scale, group)

    def alone(step: Step, group: Any) -> Tensor:
        if reference is None:
            return of_step(step, group)
        return reference(step.queries, step.candidates, step.scale)

    check_choice("layout", layout, LAYOUTS)
    check_choice("wrapper", wrapper, ("ddp", "fsdp"))
    plan = Plan(layout, wrapper, pairs=True)
    return compare(case, of_step, alone, group, plan, dtype, global_loss)


def compare(
    case: str,
    loss: StepLoss,
    reference: StepLoss,
    group: Any,
    plan: Plan,
    dtype: torch.dtype | None = None,
    global_loss: bool = True,
) -> Verdict:
    """`check_gradients` of a loss that takes a whole `Step`, by a plan."""
    ranks = resolve_group(group)
    if ranks is None:
        raise ValueError("group must have 2 ranks or more, got one process; start more")
    device = _device(ranks)
    exact = torch.float64
    dtype = dtype or (exact if device.type == "cpu" else torch.float32)
    world, rank = dist.get_world_size(ranks), dist.get_rank(ranks)
    rows, columns = spread(plan.layout, world, plan.pairs)
    draws: dict[str, list[Draw]] = {}
    for seed in range(1 if dtype == exact else _DRAWS):
        wholes = _batches(plan, world, 1000 * seed)
        parts = [[part_of(w, rows[rank], columns[rank]) for w in micro] for micro in wholes]
        encoders = Encoders(dtype, device, plan.bias)
        wrapped = _wrapped(encoders, plan.wrapper, ranks, device)
        actual = _learn(encoders, wrapped, parts, lambda step: loss(step, ranks), dtype, device)

        def alone(as_dtype: torch.dtype, wholes: Any = wholes) -> Found:
            model = Encoders(as_dtype, device, plan.bias)
            return _learn(model, model, wholes, lambda s: reference(s, None), as_dtype, device)

        truth = alone(exact)
        rounded = truth if dtype == exact else alone(dtype)
        for name, value in actual.items():
            draws.setdefault(name, []).append(Draw(value, rounded[name], truth[name]))
    return _judged(case, draws, ranks, global_loss)


def _device(group: ProcessGroup) -> torch.device:
    if dist.get_backend(group) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _batches(plan: Plan, world: int, seed: int) -> list[list[Inputs]]:
    """The micro-batches of every step."""
    return [
        [
            whole_batch(plan.layout, world, plan.pairs, seed + step * plan.micro_batches + i)
            for i in range(plan.micro_batches)
        ]
        for step in range(plan.steps)
    ]


def _wrapped(
    encoders: Encoders, wrapper: Wrapper, group: ProcessGroup, device: torch.device
) -> Any:
    if wrapper == "fsdp":
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        return fully_shard(encoders, mesh=DeviceMesh.from_group(group, device.type))
    from torch.nn.parallel import DistributedDataParallel

    return DistributedDataParallel(encoders, process_group=group)


def _learn(
    encoders: Encoders,
    wrapped: Any,
    batches: Sequence[Sequence[Inputs]],
    loss: Callable[[Step], Tensor],
    dtype: torch.dtype,
    device: torch.device,
) -> Found:
    """The parameters' gradients, or what several steps add to them; and the last loss."""
    before = _values(encoders.named_parameters())
    optimizer = torch.optim.SGD(encoders.parameters(), lr=_RATE)
    found = before
    for micro in batches:
        optimizer.zero_grad()
        total = torch.zeros((), dtype=dtype, device=device)
        for i, inputs in enumerate(micro):
            inputs = Inputs(*(x.to(device) for x in inputs))
            at_once = wrapped is encoders or i + 1 == len(micro)
            with contextlib.nullcontext() if at_once else wrapped.no_sync():
                q, c, scale, bias = wrapped(inputs.queries.to(dtype), inputs.candidates.to(dtype))
                step = Step(q, c, scale, bias, inputs.query_keys, inputs.candidate_keys)
                value = loss(step) / len(micro)
                value.backward()
            total += value.detach()
        if len(batches) == 1:
            found = _values((n, p.grad) for n, p in encoders.named_parameters())
        else:
            optimizer.step()
    if len(batches) > 1:
        after = _values(encoders.named_parameters())
        found = {name: after[name] - x for name, x in before.items()}
    return {**found, "loss": total}


def _values(tensors: Any) -> Found:
    """Copies; of what FSDP has sharded the whole."""
    return {
        name: (x.full_tensor() if hasattr(x, "full_tensor") else x).detach().clone()
        for name, x in tensors
        if x is not None
    }


def _right(name: str, draws: Sequence[Draw]) -> bool:
    if draws[0].actual.dtype == torch.float64:
        error = torch.stack([(d.actual - d.truth).abs().max() for d in draws]).max()
        largest = torch.stack([d.truth.abs().max() for d in draws]).max()
        return bool(error <= _TOLERANCE * largest)
    try:
        assert_accurate(name, *draws)
    except AssertionError:
        return False
    return True


def _judged(
    case: str, draws: dict[str, list[Draw]], group: ProcessGroup, global_loss: bool
) -> Verdict:
    losses = draws.pop("loss")
    right = all(_right(name, of_name) for name, of_name in draws.items())

    def ratios(names: Sequence[str]) -> tuple[float, float, float]:
        """Length and cosine against the true ones, and the part along them."""
        given = [d for name in names for d in draws.get(name, [])]
        a = torch.cat([d.actual.double().flatten() for d in given])
        b = torch.cat([d.truth.flatten() for d in given])
        size, along = a.norm() / b.norm(), a @ b / (b @ b)
        return float(size), float(along / size), float(along)

    own = torch.stack([torch.tensor(float(right)), *(d.actual.double().cpu() for d in losses)])
    everyone = gather_equal(own.to(losses[0].truth.device), group)  # [W, 1 + draws]
    truth = torch.stack([d.truth for d in losses])
    of_loss = everyone[:, 1:] / truth
    is_right = [
        _right("loss", [d._replace(actual=x) for d, x in zip(losses, given, strict=True)])
        for given in everyone[:, 1:].to(losses[0].actual.dtype)
    ]
    lowest, highest = of_loss.min(dim=0).values, of_loss.max(dim=0).values
    apart = not bool(torch.allclose(lowest, highest, rtol=1e-5, atol=0.0))
    size, cosine, _ = ratios([name for name in draws if name not in _NUMBERS])
    verdict = Verdict(
        case,
        size=size,
        cosine=cosine,
        scale=ratios(_NUMBERS)[2],
        lowest_loss=float(of_loss.min()),
        highest_loss=float(of_loss.max()),
        gradients="ok" if bool((everyone[:, 0] == 1).all()) else "WRONG",
        loss="ok" if all(is_right) else "differs" if apart else "WRONG",
        global_loss=global_loss,
        explanation="",
    )
    return replace(verdict, explanation=explain(verdict, len(everyone)))
