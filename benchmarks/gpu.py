"""What the README would want to say of a GPU, in one command: `python benchmarks/gpu.py`.

Writes benchmarks/results/gpu-NAME.json, with the name of the GPU. The results of all providers
are compared before anything is timed; then, for each size, forward, and forward and backward, in
turn in one process, in seconds, medians of rounds as ratios to grainrank; and peak memory over the
inputs. A provider that runs out of memory is recorded as such.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from providers import PREFIXES, TEMPERATURE, Step, eager, gradients
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from grainrank import GrainKeys, info_nce_loss, multi_level_ranking_loss
from grainrank.bench.memory import peak_on_gpu
from grainrank.bench.timing import interleave, ratio
from grainrank.machine import machine_header

SIZES = [(n, d) for n in (8192, 16384, 32768, 65536) for d in (768, 4096)]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROUNDS = 15
Provider = Callable[[Step], Tensor]


def _levels(step: Step) -> GrainKeys:
    return GrainKeys(step.query_keys, step.candidate_keys)


def multi_level(
    step: Step, backend: Literal["triton", "cuda"] = "triton", **options: Any
) -> Tensor:
    return multi_level_ranking_loss(
        step.queries, step.candidates, _levels(step), temperature=TEMPERATURE, backend=backend,
        **options,
    )  # fmt: skip


def clip(step: Step, backend: Literal["triton", "cuda"] = "triton") -> Tensor:
    return info_nce_loss(
        step.queries, step.candidates, temperature=TEMPERATURE, direction="symmetric",
        backend=backend,
    )  # fmt: skip


def eager_clip(step: Step) -> Tensor:
    """The loss as open_clip writes it."""
    z = normalize(step.queries, dim=1) @ normalize(step.candidates, dim=1).T / TEMPERATURE
    labels = torch.arange(len(z), device=z.device)
    return (cross_entropy(z, labels) + cross_entropy(z.T, labels)) / 2


#: Of each benchmark: grainrank first, which the ratios are to.
BENCHMARKS: dict[str, dict[str, Provider]] = {
    "multi_level": {
        "fused": partial(multi_level, product="fused"),
        "vendor": partial(multi_level, product="vendor"),
        "cuda": partial(multi_level, backend="cuda"),
        "eager": eager,
        "compiled": torch.compile(eager),
    },
    "clip": {
        "grainrank": clip,
        "cuda": partial(clip, backend="cuda"),
        "eager": eager_clip,
        "compiled": torch.compile(eager_clip),
    },
    "matryoshka": {"grainrank": partial(multi_level, product="vendor", matryoshka_dims=PREFIXES)},
}


def moved(step: Step, device: torch.device) -> Step:
    tensors = (step.queries, step.candidates, step.query_keys, step.candidate_keys)
    q, c, *keys = (t.detach().to(device) for t in tensors)
    return Step(q.requires_grad_(), c.requires_grad_(), *keys)


def check(
    providers: dict[str, Provider], dtype: torch.dtype, device: torch.device, n: int, m: int, d: int
) -> None:
    """The providers agree before anybody times them: what they measure is the same loss."""
    step = moved(Step.make(n, m, d, dtype), device)
    (first, *rest) = (gradients(provider, step) for provider in providers.values())
    tolerance = 32 * torch.finfo(dtype).eps
    for results in rest:
        for ours, theirs in zip(first, results, strict=True):
            error = (ours.float() - theirs.float()).abs().max()
            if not error <= tolerance * theirs.float().abs().max():
                raise AssertionError(
                    f"the providers differ by {float(error):.3g}; nothing is timed"
                )


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    return peak_on_gpu(run) if device.type == "cuda" else 0


def measure(
    providers: dict[str, Provider], n: int, d: int, dtype: torch.dtype, device: torch.device,
    rounds: int,
) -> dict[str, Any]:  # fmt: skip
    step = moved(Step.make(n, n, d, dtype), device)
    result: dict[str, Any] = {"N": n, "M": n, "D": d, "flops_of_products": 3 * 2 * n * n * d}
    kinds: dict[str, dict[str, Callable[[], Any]]] = {"forward": {}, "step": {}}
    for name, provider in providers.items():
        try:
            result[f"{name}/peak_bytes"] = peak_bytes(partial(gradients, provider, step), device)
        except torch.OutOfMemoryError:
            result[f"{name}/peak_bytes"] = "out of memory"
            continue
        kinds["step"][name] = synchronised(partial(gradients, provider, step), device)
        kinds["forward"][name] = synchronised(torch.no_grad()(partial(provider, step)), device)
    for kind, runs in kinds.items():
        seconds = interleave(runs, rounds)
        result[f"{kind}/seconds"] = seconds
        base = next(iter(providers))
        for name in seconds:
            if base in seconds:
                result[f"{kind}/{name}/{base}"] = ratio(seconds, name, base)
    return result


def synchronised(run: Callable[[], Any], device: torch.device) -> Callable[[], None]:
    def timed() -> None:
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return timed


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, add_help=True)
    parser.add_argument("--output", type=Path, help="the result file")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.error("PyTorch sees no GPU")
    device, gpu = torch.device("cuda"), torch.cuda.get_device_name()
    slug = re.sub(r"\W+", "-", gpu.lower())
    output = options.output or Path(__file__).parent / "results" / f"gpu-{slug}.json"
    header = {**machine_header(), "gpu": gpu, "cuda": torch.version.cuda, "hip": torch.version.hip}
    results: dict[str, Any] = {"machine": header}
    built = importlib.util.find_spec("grainrank._cuda") is not None
    for name, all_providers in BENCHMARKS.items():
        providers = {k: run for k, run in all_providers.items() if built or k != "cuda"}
        for dtype_name, dtype in DTYPES.items():
            check(providers, dtype, device, n=515, m=515, d=768)
            results[f"{name}-{dtype_name}"] = []
            for n, d in SIZES:
                result = measure(providers, n, d, dtype, device, options.rounds)
                results[f"{name}-{dtype_name}"].append(result)
                # What has been measured stays if a later size fails.
                output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
