"""What any call must do: an error that names an argument, or the result of the reference."""

from __future__ import annotations

import faulthandler
import inspect
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import grainrank
from grainrank.testing import Draw, assert_accurate

Results = dict[str, Tensor]
Call = Callable[[str, torch.dtype | None, int], Results]  # of a backend, a dtype and a draw
#: What became of the inputs, for the summary of `make fuzz`.
TRIED: Counter[str] = Counter()
# Seconds of one input: the reference may take a minute for its smooth ranks, and many on a machine
# that does other things too.
_LONGEST = 1800
_STACKS = Path(__file__).parents[2] / "build" / "fuzz-hung.txt"  # pytest would hide them
_EMPTY = 1e29  # and above: what an empty level holds
_DRAWS = 1, 8, 64  # judged together, see grainrank.testing
_UNLUCKY = 4


def _arguments() -> set[str]:
    """Every name that an error may have."""
    names = {
        name
        for options in (grainrank.ScaledOptions, grainrank.SharedOptions)
        for name in options.__annotations__
    }
    public = [getattr(grainrank, name) for name in grainrank.__all__]
    owners = grainrank.LevelSource, grainrank.SimilarityBands, grainrank.SparseLevels
    methods = [m for owner in owners for _, m in inspect.getmembers(owner, callable)]
    for function in (*public, *methods, *vars(grainrank.metrics).values()):
        try:
            names |= set(inspect.signature(function).parameters)
        except (TypeError, ValueError):
            continue
    return names - {"self", "args", "kwargs", "options"}


_NAMES = re.compile(r"\b(" + "|".join(sorted(_arguments())) + r")\b")


@contextmanager
def watched() -> Iterator[None]:
    """Ends the process, with its stacks in a file, where a call does not come back."""
    _STACKS.parent.mkdir(exist_ok=True)
    with _STACKS.open("w") as stacks:
        faulthandler.dump_traceback_later(_LONGEST, exit=True, file=stacks)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()


def refusal(call: Callable[[], Any]) -> Exception | None:
    """The error of a call, which must be one of the documented ones; None: it returned."""
    try:
        with watched():
            call()
    except (TypeError, ValueError) as caught:
        error = caught
    else:
        return None
    assert _NAMES.search(str(error)), f"the error names no argument: {error!r}"
    return error


def check(
    call: Call, dtype: torch.dtype, *, infinite: bool = False, unjudged: Collection[str] = ()
) -> None:
    """`call` with `backend="cpu"` is refused as by the reference, or gives what that gives.

    `infinite`: the inputs are not finite, and of where that shows nothing is said.
    `unjudged`: results of which nothing more is asked than that no NaN is hidden.
    """
    error = refusal(lambda: call("cpu", dtype, 0))
    # The reference has no workspace that could be too small.
    if error is not None and str(error).startswith("workspace_mb must hold"):
        TRIED["refused"] += 1
        return
    other = refusal(lambda: call("reference", dtype, 0))
    same = (type(error), str(error)) == (type(other), str(other))
    assert same, f"the reference says {other!r}, not {error!r}"
    TRIED["refused" if error is not None else "right"] += 1
    if error is None:
        _judge(call, dtype, infinite, unjudged)


def _judge(call: Call, dtype: torch.dtype, infinite: bool, unjudged: Collection[str]) -> None:
    """The rule of accuracy, on as many draws as it takes to tell an error from bad luck: the first
    one is among them always.
    """
    steps: list[tuple[Results, ...]] = []
    for draws in _DRAWS:
        for seed in range(len(steps), draws):
            with watched():
                of_reference = (call("reference", t, seed) for t in (dtype, torch.float64))
                steps.append((call("cpu", dtype, seed), *of_reference))
        wrong = None
        for name in steps[0][0]:
            compared = [_comparable(name, *(x[name] for x in step), infinite) for step in steps]
            if name not in unjudged:
                wrong = wrong or _inaccuracy(
                    name, [draw for draw in compared if draw], dtype, draws
                )
        if wrong is None:
            return
    raise wrong


def _comparable(
    name: str, actual: Tensor, reference: Tensor, truth: Tensor, infinite: bool
) -> Draw | None:
    """Where the numbers are finite; of the rest, and of integers, raises where they differ."""
    if not actual.is_floating_point():
        assert torch.equal(actual, reference), name
        return None
    # A NaN or infinity must show, if not in a gradient of what is NaN itself. Through the norm it
    # spreads over the features of a row.
    lost = ~torch.isfinite(reference) & ~torch.isfinite(truth)
    if not (infinite and name.startswith("d_")):
        assert not bool(torch.isfinite(actual)[lost].any()), f"{name} hides a NaN or infinity"
    finite = torch.isfinite(reference) & torch.isfinite(truth)
    if infinite:
        finite = finite & torch.isfinite(actual)
    if name.startswith("d_") and finite.dim() == 2:
        finite = finite.all(dim=1, keepdim=True).expand_as(finite)
    here = finite & (truth.abs() < _EMPTY)
    empty = finite & ~here
    assert torch.equal(actual[empty], reference[empty]), f"{name} of empty levels"
    return Draw(actual[here], reference[here], truth[here])


def _inaccuracy(
    name: str, draws: list[Draw], dtype: torch.dtype, number: int
) -> AssertionError | None:
    try:
        if dtype != torch.float64:
            # The worst of thousands of inputs may be unlucky; a wrong number is off by far more.
            factor = _UNLUCKY if number == _DRAWS[-1] else 1
            for i, (actual, reference, truth, _) in enumerate(draws):
                nearer = truth + (actual.double() - truth) / factor
                draws[i] = Draw(nearer.to(actual.dtype), reference, truth)
            if name == "loss":  # a difference of logarithms of sums, which are of size 1 or more
                one = torch.ones(1, dtype=draws[0].actual.dtype)
                draws.append(Draw(one, one, one.double()))
            assert_accurate(name, *draws)
            return None
        for draw in draws:  # there is no wider truth here
            size = float(draw.truth.abs().max()) if draw.truth.numel() > 0 else 0.0
            torch.testing.assert_close(
                draw.actual, draw.reference, rtol=1e-9, atol=1e-10 * max(size, 1.0), msg=name
            )
    except AssertionError as error:
        return error
    return None
