"""The training loop of both data sets; it goes on where a killed command stopped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints import Checkpoint

# Seconds of a run between two checkpoints: with Adam's moments one has three times the weights.
EVERY = 20.0


class Position:
    """How far one run is, kept in its checkpoint; without one it begins and keeps nothing.

    Attributes:
        epochs: that are done, of a run under way.
        result: of a run that is finished; None: it is not.
    """

    def __init__(self, checkpoint: Checkpoint | None = None) -> None:
        self._checkpoint = checkpoint
        saved = (checkpoint.load() if checkpoint else None) or {}
        self.epochs: int = saved.get("epochs", 0)
        self.result: Any = saved.get("result")
        self._states: dict[str, Any] = saved.get("states", {})
        self._written = time.monotonic()
        self._began: float = self._written - saved.get("seconds", 0.0)

    @property
    def seconds(self) -> float:
        """Of the run, those before it was stopped included."""
        return time.monotonic() - self._began

    def restore(self, parts: Mapping[str, Any], generator: torch.Generator) -> None:
        """Brings model, optimizer and the like back to where they were."""
        if self._states:
            generator.set_state(self._states.pop("generator"))
            for name, part in parts.items():
                part.load_state_dict(self._states.pop(name))

    def reached(self, epochs: int, parts: Mapping[str, Any], generator: torch.Generator) -> None:
        """Saves them, unless that was done a moment ago."""
        if time.monotonic() - self._written >= EVERY:
            states = {name: part.state_dict() for name, part in parts.items()}
            self._save({"epochs": epochs, "states": states | {"generator": generator.get_state()}})
            self._written = time.monotonic()

    def finished(self, result: Any) -> None:
        """Saves the result, in place of what led to it."""
        self._save({"result": result})

    def _save(self, state: dict[str, Any]) -> None:
        if self._checkpoint is not None:
            self._checkpoint.save(state | {"seconds": self.seconds})


def fit(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    loss: Callable[[Tensor, torch.Generator], Tensor],
    *,
    pairs: int,
    batch: int,
    epochs: int,
    seed: int,
    on_step: Callable[[], None],
    position: Position | None = None,
) -> None:
    """Trains on `pairs` in random order, in batches without the incomplete last one.

    `loss` is that of the pairs `[batch]`; `seed` makes the generator that draws their order, from
    which `loss` may draw too. The result is the same bit for bit wherever the run was stopped.
    """
    position = position or Position()
    generator = torch.Generator().manual_seed(seed)
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule}
    position.restore(parts, generator)
    for epoch in range(position.epochs, epochs):
        order = torch.randperm(pairs, generator=generator)
        for rows in order.split(batch)[: pairs // batch]:
            optimizer.zero_grad()
            loss(rows, generator).backward()
            optimizer.step()
            schedule.step()
            on_step()
        if epoch + 1 < epochs:
            position.reached(epoch + 1, parts, generator)
