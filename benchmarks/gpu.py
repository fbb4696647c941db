"""The suite on the GPU that is here, in one command: `python benchmarks/gpu.py`.

Writes benchmarks/results/gpu-NAME-LOSS-DTYPE.json for each loss and dtype, with the name of the
GPU: what `benchmarks/suite.py` writes on a CPU, at larger sizes, with grainrank's other ways on a
GPU and the kernels of other packages. Times are of the GPU, between two events; peak memory is
PyTorch's, over the inputs. A provider that runs out of memory is recorded as such.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from alternatives import LOSSES, PROVIDERS, Case
from suite import GIB, LEVELS, Limits, report, run
from suite_runs import KINDS

from grainrank.backends import auto_backend
from grainrank.bench.measure import DENSE, OURS
from grainrank.bench.verify import Setting
from grainrank.console import positive
from grainrank.testing import Shape

ROWS, FEATURES = (8192, 16384, 32768, 65536), (768, 4096)
ENCODER_ROWS, ENCODER_FEATURES = (4096, 16384), (768,)
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
ROUNDS = 15
RESULTS = Path(__file__).parent / "results"


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--loss", choices=LOSSES, nargs="+", default=LOSSES, help="default: all")
    made.add_argument("--dtype", choices=DTYPES, nargs="+", default=list(DTYPES),
                      help="default: all")  # fmt: skip
    made.add_argument("--n", type=positive, nargs="+", default=ROWS, metavar="N")
    made.add_argument("--d", type=positive, nargs="+", default=FEATURES, metavar="D")
    made.add_argument("--encoder-n", type=positive, nargs="+", default=ENCODER_ROWS, metavar="N")
    made.add_argument("--kinds", choices=KINDS, nargs="+", default=KINDS)
    made.add_argument("--providers", choices=tuple(PROVIDERS), nargs="+", metavar="NAME")
    made.add_argument("--rounds", type=positive, default=ROUNDS)
    made.add_argument("--memory-limit-gb", type=float, metavar="GIB",
                      help="of PyTorch's allocator (default: all of the GPU)")  # fmt: skip
    made.add_argument("--time-limit", type=float, default=30.0, metavar="SECONDS")
    made.add_argument("--out", type=Path, default=RESULTS, metavar="FOLDER", help="of the JSON")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    if not torch.cuda.is_available():
        parser().error("PyTorch sees no GPU")
    device = torch.device("cuda", torch.cuda.current_device())
    limit = None
    if given.memory_limit_gb is not None:
        limit = int(given.memory_limit_gb * GIB)
        there = torch.cuda.get_device_properties(device).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / there), device)
    slug = re.sub(r"\W+", "-", torch.cuda.get_device_name().lower())
    wanted = None if given.providers is None else [OURS, DENSE, *given.providers]
    # Each D by itself, the small N first: what was too slow is so for the larger N.
    shapes = [Shape(n, n, d, LEVELS) for d in given.d for n in sorted(given.n)]
    encoders = [Shape(n, n, d, LEVELS) for d in ENCODER_FEATURES for n in sorted(given.encoder_n)]
    codes = []
    for loss in given.loss:
        for name in given.dtype:
            case = Case(loss, Setting(DTYPES[name], device, LEVELS), auto_backend("cuda"))
            out = given.out / f"gpu-{slug}-{loss.replace('_', '-')}-{name}.json"
            limits = Limits(limit, given.time_limit, given.rounds)
            found = run(case, shapes, encoders, given.kinds, limits, out, wanted)
            codes.append(report(found, out))
    return max(codes)


if __name__ == "__main__":
    sys.exit(main())
