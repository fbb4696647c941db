"""What a comparison with one process says of a loss, and in words what went wrong.

The conventions that the words are about are in docs/distributed.md.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

_NEAR = 1e-3  # ratios that are said to be 1, W or 1 / W
_ADDED_UP = 0.85  # cosines below: what the data of encoders.py show


@dataclass(frozen=True)
class Verdict:
    """A loss over the ranks of a group, beside one process on the whole batch."""

    case: str
    size: float  #: length of the encoders' gradient / that of the true one
    cosine: float  #: between the two
    scale: float  #: gradient of the scale (and the bias) / the true one
    lowest_loss: float  #: over the ranks / the global loss
    highest_loss: float
    gradients: Literal["ok", "WRONG"]
    loss: Literal["ok", "differs", "WRONG"]  #: differs: between the ranks
    global_loss: bool  #: whether every rank has to return the global loss
    explanation: str

    @property
    def ok(self) -> bool:
        """The gradients are right, and where it has to be the loss."""
        return self.gradients == "ok" and (self.loss == "ok" or not self.global_loss)

    def row(self) -> dict[str, Any]:
        """For JSON: no number that is not finite."""
        numbers = {k: None if _undefined(v) else v for k, v in asdict(self).items()}
        return {**numbers, "verdict": "ok" if self.ok else "WRONG"}


def explain(verdict: Verdict, world: int) -> str:
    """The likely convention; "" where there is nothing to say."""
    if verdict.gradients == "WRONG":
        return _of_gradients(verdict, world)
    if verdict.loss == "differs":
        lowest, highest = verdict.lowest_loss, verdict.highest_loss
        return (
            f"right gradients, but the loss differs between the ranks, from {lowest:.3g} to "
            f"{highest:.3g} of the global one: each returns that of its own rows; log the mean"
        )
    if verdict.loss == "WRONG":
        return f"right gradients, but a loss {verdict.lowest_loss:.6g} times the global one"
    return ""


def _of_gradients(v: Verdict, world: int) -> str:
    w = world
    if _undefined(v.size) or _undefined(v.cosine) or _undefined(v.scale):
        return "a gradient is zero or not finite"
    if not _near(v.cosine, 1):
        lost = (
            "the gathered rows' gradient is lost (a gather without it, or one whose backward keeps "
            "the own slice)"
        )
        added = (
            "gradients of different samples are added up (a gather whose backward takes the own "
            "slice before it sums)"
        )
        first, second = (added, lost) if v.cosine < _ADDED_UP else (lost, added)
        likely = "most likely " if world > 2 else ""  # of two ranks the cosines are alike
        return f"wrong direction: {likely}{first}, or else {second}"
    if _near(v.size, w) and _near(v.scale, w):
        return f"all gradients are W = {w} times too large: loss multiplied by the world size"
    if _near(v.size, 1 / w) and _near(v.scale, 1):
        return (
            f"the encoders' gradient is 1 / W of the true one (W = {w}): the global "
            f"loss of candidates gathered without their gradient"
        )
    if _near(v.size, 1) and _near(v.scale, w):
        if v.loss == "WRONG" and _near(v.lowest_loss, w):
            return (
                f"temperature gradient W = {w} times too large: loss multiplied by W, which makes "
                f"up for a gather without gradient in the encoders alone"
            )
        return f"temperature gradient W = {w} times too large: summed over ranks, not averaged"
    if _near(v.size, 1) and _near(v.scale, 1):
        return "gradients are off by more than rounding, or differ between the ranks"
    return (
        f"the encoders' gradient is {v.size:.3g} times, the temperature's {v.scale:.3g} times the "
        f"true one"
    )


def _near(value: float, expected: float) -> bool:
    return abs(value - expected) <= _NEAR * expected


def _undefined(value: object) -> bool:
    return isinstance(value, float) and not math.isfinite(value)
