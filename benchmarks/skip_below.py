"""What `skip_below` saves, and what it changes: `python benchmarks/skip_below.py --out FILE`.

Embeddings as a trained model has them: groups of similar rows, noise about a centre of each, so
that similar pairs have cosines of about 0.9 and others about 0; every query has one positive.
`sorted`: groups stand together in the batch, as a sampler that draws by group leaves them;
`shuffled`: they do not. Seconds of a step, forward and backward, in turn with the same step
without `skip_below`; and by how much the gradients differ, over their norm.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from grainrank import info_nce_loss
from grainrank.bench.timing import interleave, ratio
from grainrank.machine import instruction_sets, machine_header

N, D, GROUPS, NOISE = 8192, 768, 16, 0.33
SHARE = 2.0**-12
TEMPERATURES = (0.02, 0.05)
ROUNDS = 3


def embeddings(shuffled: bool) -> tuple[Tensor, Tensor]:
    """Queries and candidates `[N, D]`; candidate i belongs to query i."""
    generator = torch.Generator().manual_seed(0)
    centres = normalize(torch.randn(GROUPS, D, generator=generator), dim=1)
    group = torch.arange(N) * GROUPS // N
    if shuffled:
        group = group[torch.randperm(N, generator=generator)]

    def around(rows: Tensor, noise: float) -> Tensor:
        return rows + noise * normalize(torch.randn(N, D, generator=generator), dim=1)

    items = around(centres[group], NOISE)
    return around(items, NOISE / 2), around(items, NOISE / 2)


def gradients(q: Tensor, c: Tensor, **options: Any) -> tuple[Tensor, ...]:
    leaves = [x.detach().requires_grad_() for x in (q, c)]
    info_nce_loss(*leaves, backend="cpu", **options).backward()
    return tuple(x.grad for x in leaves if x.grad is not None)


def measure(temperature: float, shuffled: bool) -> dict[str, Any]:
    q, c = embeddings(shuffled)
    usual = {"temperature": temperature}
    skipping = {**usual, "skip_below": SHARE}
    exact, found = gradients(q, c, **usual), gradients(q, c, **skipping)
    seconds = interleave(
        {
            "all": lambda: gradients(q, c, **usual),
            "skipping": lambda: gradients(q, c, **skipping),
        },
        ROUNDS,
    )
    return {
        "temperature": temperature,
        "order": "shuffled" if shuffled else "sorted",
        "of_all": ratio(seconds, "skipping", "all"),
        "median_seconds": {name: statistics.median(times) for name, times in seconds.items()},
        "relative_error": max(
            float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the JSON")
    out = parser.parse_args().out
    found = {
        "command": "skip_below",
        "machine": {**machine_header(), "instruction_sets": instruction_sets()},
        "n": N, "dim": D, "groups": GROUPS, "skip_below": SHARE, "rounds": ROUNDS,
        "cases": [
            measure(temperature, shuffled)
            for shuffled in (False, True)
            for temperature in TEMPERATURES
        ],
    }  # fmt: skip
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
