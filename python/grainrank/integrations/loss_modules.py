"""Checks of the loss that a user gives to an adapter."""

from __future__ import annotations

from typing import Any

import torch

from ..losses.module import LossModule


def check_loss(loss: object) -> LossModule:
    """A loss module of grainrank."""
    if not isinstance(loss, LossModule):
        raise TypeError(
            f"loss must be a loss module of grainrank, such as "
            f"grainrank.MultiLevelRankingLoss(temperature=0.05), got {type(loss).__name__}"
        )
    return loss


def check_learned(loss: LossModule) -> None:
    """Raises where a learned option would go its own way on every process."""
    learned = [name for name, p in loss.named_parameters() if p.requires_grad]
    if learned and world_group() is not None and torch.distributed.get_world_size() > 1:
        raise ValueError(
            f"loss must have no parameters on several processes, where nobody reduces their "
            f"gradients, got {', '.join(learned)}; make it a parameter of the model, or fix it"
        )


def world_group() -> Any:
    """All processes, or None where there is one."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.group.WORLD
    return None
