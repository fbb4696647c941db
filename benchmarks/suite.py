"""A training step of a loss beside everything that a user has for it; docs/performance.md.

    python benchmarks/suite.py --loss multi_level --n 1024 2048 4096 --out FILE

Providers are compared with the reference, loss and gradients, before anything is timed. Of each
shape, peak memory comes first, in processes of their own that are refused what exceeds the limit;
then forward pass and training step, all providers in turn in one process, medians of the rounds.
The JSON is written after each shape; `python -m grainrank plot FILE --out PNG` draws it.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from alternatives import CHUNK_ROWS, LOSSES, MATRYOSHKA, MINI_BATCH, PROVIDERS, Case, missing
from alternatives import names_for as names_of_loss
from suite_runs import (
    ENCODER,
    FORWARD,
    KINDS,
    STEP,
    EncoderStep,
    Seconds,
    encoder_says,
    inputs_of,
    peak_of_step,
    run_of,
)

from grainrank.backends import auto_backend
from grainrank.bench.main import DTYPES
from grainrank.bench.measure import COMPILED, DENSE, LABELS, OURS, PRODUCTS
from grainrank.bench.memory import OUT_OF_MEMORY, can_measure, free_bytes, peak_apart, ran_out
from grainrank.bench.timing import gpu_seconds, interleave, ratio, wall_seconds
from grainrank.bench.verify import Setting, disagreements, inaccuracies
from grainrank.console import positive
from grainrank.machine import gpus, instruction_sets, machine_header
from grainrank.testing import Shape

CHECKED = Shape(N=1152, M=1152, D=64)  # more rows than the chunks of any provider
LEVELS, DRAWS = 3, 2
GIB = 2**30


class Limits(NamedTuple):
    """What a provider may take, and how often it runs."""

    memory: int | None  #: bytes over the inputs; None: all there are, on a GPU
    seconds: float  #: a slower step is not tried on larger shapes
    rounds: int


def providers_of(
    case: Case, wanted: Sequence[str] | None = None
) -> tuple[list[str], dict[str, str]]:
    """Those that can run the case, and why the others cannot."""
    names = [name for name in names_of_loss(case) if wanted is None or name in wanted]
    reasons = {name: missing(PROVIDERS[name], case) for name in names}
    left_out = {name: reason for name, reason in reasons.items() if reason is not None}
    return [name for name in names if name not in left_out], left_out


def check(case: Case, names: Sequence[str], shape: Shape = CHECKED) -> dict[str, list[str]]:
    """What is wrong with the loss or the gradients of each; none: right.

    Grainrank by the rule of accuracy; the others are the reference's loss in float64, where they
    can, and no more than some roundings away from it in the dtype that is measured.
    """
    reference = PROVIDERS[OURS].make(case._replace(backend="reference"))
    exact = case.setting._replace(dtype=torch.float64, device=torch.device("cpu"))
    wrong: dict[str, list[str]] = {}
    for name in names:
        provider = PROVIDERS[name]
        try:
            loss = provider.make(case)
            options: dict[str, Any] = {
                "shape": shape, "draws": DRAWS, "learns_scale": provider.learns_scale,
            }  # fmt: skip
            found = disagreements(loss, reference, case.setting, **options)
            if provider.float64 and name != COMPILED:
                found += disagreements(loss, reference, exact, **options)
            if name == OURS and case.loss != MATRYOSHKA:
                found += inaccuracies(loss, reference, reference, case.setting)
        except Exception as error:  # of another library: it is left out
            found = [f"{type(error).__name__}: {_first_line(error)}"]
        if found:
            wrong[name] = found
    return wrong


class Suite:
    """The shapes of one case, one after the other; larger ones without what was too slow."""

    def __init__(self, case: Case, names: Sequence[str], kinds: Sequence[str], limits: Limits):
        self.case, self.names, self.kinds, self.limits = case, list(names), kinds, limits
        self._slow: dict[tuple[str, str], tuple[Shape, str]] = {}  # by kind and provider

    def measure(self, shape: Shape) -> dict[str, Any]:
        """Peak, and seconds of each kind, of every provider; or why not."""
        if COMPILED in self.names:
            torch.compiler.reset()  # else it stops compiling after eight shapes
        found: dict[str, dict[str, Any]] = {name: {} for name in (*self.names, PRODUCTS)}
        self._peaks(STEP, shape, found)
        inputs = inputs_of(self.case, shape)
        for kind in (FORWARD, STEP):
            if kind not in self.kinds:
                continue
            runs: dict[str, Callable[[], Any]] = {}
            for name, of_name in found.items():
                if "skipped" not in of_name:
                    runs[name] = run_of(kind, name, self.case, inputs)
            for name, times in self._interleaved(runs, found).items():
                found[name][kind] = times
        self._note_slow(STEP, shape, {k: x[STEP] for k, x in found.items() if STEP in x})
        n, m, d, _ = shape
        return {
            "n": n, "m": m, "dim": d, "flops_of_products": 6 * n * m * d,
            "load_average": os.getloadavg()[0], "providers": found,
        }  # fmt: skip

    def _interleaved(
        self, runs: dict[str, Callable[[], Any]], found: dict[str, dict[str, Any]]
    ) -> dict[str, Any]:
        """Seconds of each; what fails is skipped, and the others go on."""
        seconds_of = gpu_seconds if self.case.setting.device.type == "cuda" else wall_seconds
        failed: dict[str, str] = {}

        def guarded(name: str) -> Callable[[], Any]:
            def run() -> None:
                if name in failed:
                    return
                try:
                    runs[name]()
                except Exception as error:
                    failed[name] = OUT_OF_MEMORY if ran_out(error) else _first_line(error)

            return run

        seconds = interleave({name: guarded(name) for name in runs}, self.limits.rounds, seconds_of)
        for name, reason in failed.items():
            found[name]["skipped"] = reason
            del seconds[name]
        return {name: _times(seconds, name) for name in seconds}

    def measure_encoder(self, shape: Shape) -> dict[str, Any]:
        """A training step of an encoder: seconds, the share of the loss, and peak memory."""
        found: dict[str, dict[str, Any]] = {name: {} for name in self.names}
        self._peaks(ENCODER, shape, found)
        taken: dict[str, list[Seconds]] = {}

        def noted(name: str) -> Callable[[], None]:
            step, taken[name] = EncoderStep(name, self.case, shape), []
            return lambda: taken[name].append(step())

        runs = {name: noted(name) for name, x in found.items() if "skipped" not in x}
        for name, times in self._interleaved(runs, found).items():
            counted = taken[name][1:]  # as the rounds are
            found[name]["step"] = times
            found[name]["loss_seconds"] = [x.loss for x in counted]
            found[name]["loss_share"] = statistics.median(x.loss / x.step for x in counted)
        self._note_slow(ENCODER, shape, {k: x["step"] for k, x in found.items() if "step" in x})
        return {
            "n": shape.N, "dim": shape.D, "encoder": encoder_says(),
            "load_average": os.getloadavg()[0], "providers": found,
        }  # fmt: skip

    def _peaks(self, kind: str, shape: Shape, found: dict[str, dict[str, Any]]) -> None:
        for name, of_name in found.items():
            slow, reason = self._slow.get((kind, name), (None, ""))
            if slow is not None and shape.N >= slow.N and shape.D >= slow.D:
                of_name["skipped"] = reason
                continue
            _say(f"N {shape.N:,}, D {shape.D:,}: peak memory of {name} ...")
            given = name, self.case, shape, self.limits.memory, kind
            try:
                if self.case.setting.device.type == "cuda":
                    torch.cuda.empty_cache()
                    of_name["peak_bytes"] = peak_of_step(*given)
                elif can_measure():
                    of_name["peak_bytes"] = peak_apart(peak_of_step, *given)
            except Exception as error:
                of_name["skipped"] = OUT_OF_MEMORY if ran_out(error) else _first_line(error)
        _say(f"N {shape.N:,}, D {shape.D:,}: timing ...")

    def _note_slow(self, kind: str, shape: Shape, times: dict[str, Any]) -> None:
        for name, of_name in times.items():
            median = of_name["median_seconds"]
            if median > self.limits.seconds and name not in (OURS, PRODUCTS):
                self._slow[kind, name] = (
                    shape,
                    f"took {median:.3g} s at N {shape.N}, D {shape.D}, more than the limit of "
                    f"{self.limits.seconds:g} s",
                )


def _times(seconds: dict[str, list[float]], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {
        "seconds": seconds[name],
        "median_seconds": statistics.median(seconds[name]),
    }
    for base in (PRODUCTS, OURS):
        if base in seconds:
            found[f"of_{base}"] = ratio(seconds, name, base)
    return found


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _say(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def run(
    case: Case,
    shapes: Sequence[Shape],
    encoders: Sequence[Shape],
    kinds: Sequence[str],
    limits: Limits,
    out: Path,
    wanted: Sequence[str] | None = None,
    busy_processes: int = 0,
) -> dict[str, Any]:
    """Checks, measures, and writes the result after each shape."""
    names, left_out = providers_of(case, wanted)
    found = _header(case, kinds, limits, names, left_out)
    found["busy_processes"] = busy_processes
    found["wrong"] = wrong = check(case, names)
    found["ok"] = not {OURS, DENSE} & set(wrong)
    _save(found, out)
    if not found["ok"]:
        return found
    suite = Suite(case, [name for name in names if name not in wrong], kinds, limits)
    if set(kinds) != {ENCODER}:
        for shape in shapes:
            found["shapes"].append(suite.measure(shape))
            _save(found, out)
    if ENCODER in kinds:
        for shape in encoders:
            found["encoder"].append(suite.measure_encoder(shape))
            _save(found, out)
    _say("")
    return found


def _header(
    case: Case, kinds: Sequence[str], limits: Limits, names: list[str], left_out: dict[str, str]
) -> dict[str, Any]:
    device = case.setting.device
    return {
        "command": "suite",
        "machine": {**machine_header(), "instruction_sets": instruction_sets(), "gpus": gpus()},
        **({"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}),
        "loss": case.loss,
        "dtype": str(case.setting.dtype).removeprefix("torch."),
        "levels": case.setting.levels if case.loss in ("multi_level", MATRYOSHKA) else 1,
        "device": device.type,
        "backend": case.backend,
        "kinds": list(kinds),
        "rounds": limits.rounds,
        "memory_limit_bytes": limits.memory,
        "time_limit_seconds": limits.seconds,
        "labels": {**{k: PROVIDERS[k].label for k in names}, PRODUCTS: LABELS[PRODUCTS]},
        "settings": {"chunk_rows": CHUNK_ROWS, "mini_batch_size": MINI_BATCH},
        "left_out": left_out,
        "ok": False,
        "wrong": {},
        "shapes": [],
        "encoder": [],
    }


def _save(found: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--loss", choices=LOSSES, default=LOSSES[0], help=f"default {LOSSES[0]}")
    made.add_argument("--n", type=positive, nargs="+", default=[1024, 2048, 4096, 8192],
                      metavar="N", help="pairs of a batch")  # fmt: skip
    made.add_argument("--d", type=positive, nargs="+", default=[256], metavar="D",
                      help="features, each with each N")  # fmt: skip
    made.add_argument("--dtype", choices=DTYPES, default=DTYPES[0], help=f"default {DTYPES[0]}")
    made.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS,
                      help="memory is always found first, as a guard of the others: alone, it "
                      "leaves out the times (default: all)")  # fmt: skip
    made.add_argument("--providers", choices=tuple(PROVIDERS), nargs="+", metavar="NAME",
                      help=f"default: all of the loss; grainrank always. {', '.join(PROVIDERS)}"
                      )  # fmt: skip
    made.add_argument("--encoder-n", type=positive, nargs="+", default=[1024], metavar="N",
                      help="pairs of a batch of kind encoder (default 1024)")  # fmt: skip
    made.add_argument("--rounds", type=positive, default=7, metavar="R", help="default 7")
    made.add_argument("--memory-limit-gb", type=float, metavar="GIB",
                      help="GiB that a provider may take over its inputs (default: half of what "
                      "is free)")  # fmt: skip
    made.add_argument("--time-limit", type=float, default=60.0, metavar="SECONDS",
                      help="of a step; a slower provider is left out of larger shapes "
                      "(default 60)")  # fmt: skip
    made.add_argument("--busy", type=int, default=0, metavar="P",
                      help="other processes that keep a core busy each meanwhile, as on a shared "
                      "machine (default 0)")  # fmt: skip
    made.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON")
    return made


@contextlib.contextmanager
def busy(processes: int) -> Iterator[None]:
    """Other processes that compute meanwhile."""
    command = [sys.executable, "-c", "while True: pass"]
    others = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    device = torch.device("cpu")
    if not can_measure():
        parser().error("needs Linux, whose /proc tells peak memory; run it there")
    limit = given.memory_limit_gb
    memory = int(limit * GIB) if limit is not None else (free_bytes(device) or 0) // 2
    setting = Setting(getattr(torch, given.dtype), device, LEVELS)
    case = Case(given.loss, setting, auto_backend("cpu"))
    wanted = None if given.providers is None else [OURS, *given.providers]

    def shapes(sizes: Sequence[int]) -> list[Shape]:
        # Each D by itself, the small N first: what was too slow is so for the larger N.
        return [Shape(n, n, d, LEVELS) for d, n in itertools.product(given.d, sorted(sizes))]

    with busy(given.busy):
        found = run(
            case, shapes(given.n), shapes(given.encoder_n), given.kinds,
            Limits(memory, given.time_limit, given.rounds), given.out, wanted, given.busy,
        )  # fmt: skip
    return report(found, given.out)


def report(found: dict[str, Any], out: Path) -> int:
    """What is left out and wrong, on the console; the exit code."""
    for name, reason in found["left_out"].items():
        print(f"{name}: {reason}")
    for name, texts in found["wrong"].items():
        print(f"{name} is WRONG and not timed: {'; '.join(texts)}")
    print(f"Written to {out}")
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
