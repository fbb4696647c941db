"""The rows of the command over several processes: grainrank's own losses."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import GrainKeys, multi_level_ranking_loss, siglip_loss
from .encoders import Step
from .gradients import Plan, compare
from .verdicts import Verdict

_LAYOUTS = {"even": "even", "uneven": "uneven", "empty": "a rank empty"}
_WRAPPERS = {"ddp": "DDP", "fsdp": "FSDP"}
_SGD_STEPS = 10


def _multi_level(step: Step, group: Any, **options: Any) -> Tensor:
    loss: Tensor = multi_level_ranking_loss(
        step.queries,
        step.candidates,
        GrainKeys(step.query_keys, step.candidate_keys),
        logit_scale=step.scale,
        group=group,
        **options,
    )
    return loss


def _siglip(step: Step, group: Any, **options: Any) -> Tensor:
    return siglip_loss(
        step.queries,
        step.candidates,
        GrainKeys(step.query_keys, step.candidate_keys),
        logit_scale=step.scale,
        logit_bias=step.bias,
        group=group,
        **options,
    )


def own_cases() -> list[tuple[str, Callable[..., Tensor], dict[str, Any], Plan]]:
    """A name, the loss, its options and how it is tried."""
    cases: list[tuple[str, Callable[..., Tensor], dict[str, Any], Plan]] = []
    for wrapper, layouts in (("ddp", ("even", "uneven", "empty")), ("fsdp", ("even", "uneven"))):
        for layout in layouts:
            for direction in ("query_to_candidate", "symmetric"):
                for transport in ("gather", "ring"):
                    short = "one way" if direction == "query_to_candidate" else direction
                    where = f"{_WRAPPERS[wrapper]}, {_LAYOUTS[layout]}"
                    name = f"multi-level, {short}, {transport}, {where}"
                    options = {"direction": direction, "transport": transport}
                    plan = Plan(layout, wrapper)  # type: ignore[arg-type]
                    cases.append((name, _multi_level, options, plan))
    for transport in ("gather", "ring"):
        plan = Plan("uneven", bias=True)
        options = {"transport": transport}
        cases.append((f"siglip, learned bias, {transport}, DDP, uneven", _siglip, options, plan))
    cases += [
        ("multi-level, 2 micro-batches, DDP, uneven", _multi_level, {},
         Plan("uneven", micro_batches=2)),
        (f"multi-level, {_SGD_STEPS} SGD steps, DDP, uneven", _multi_level, {},
         Plan("uneven", steps=_SGD_STEPS)),
    ]  # fmt: skip
    return cases


def fsdp_error(device_type: str) -> str:
    """Why `fully_shard` does not run, or ""."""
    if device_type == "cpu" and not hasattr(torch.cpu.Stream, "record_event"):
        return f"FSDP of torch {torch.__version__} does not run on CPU tensors: left out"
    return ""


def check_own(group: Any, device_type: str) -> list[Verdict]:
    """Every case that can run, against `backend="reference"` on one process."""
    without = fsdp_error(device_type) != ""
    return [
        compare(
            name,
            functools.partial(loss, **options),
            functools.partial(loss, **options, backend="reference"),
            group,
            plan,
        )
        for name, loss, options, plan in own_cases()
        if not (without and plan.wrapper == "fsdp")
    ]
