"""What the checks of the simulator are worth: our kernels, each barrier and each wait left out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from ptxsim.barriers import deletions, search
from ptxsim.driver import use
from ptxsim.kernel import Kernel
from torch import Tensor

from grainrank import GrainKeys, multi_level_ranking_loss
from grainrank.testing import Inputs, Shape, make_inputs

SEEDS = [0, 1, 2, 3]
# Features of several tiles. Rows of whole 16 bytes come by cp.async, two tiles in flight; others
# come through registers.
COPIED, LOADED = 144, 72
# Found, of all. The others are no race, as what stays orders the same accesses:
# - after the loop over the features has asked for its next tiles it waits twice (`wait_group 2` for
#   the queries, and again for the candidates): either may go, not both;
# - at its top it waits once more, when never more than those two groups are pending, and the
#   barrier there follows the one at its end (or before it) with no access in between;
# - in level_tables the next access after that loop is a store of the reduction, behind a barrier of
#   its own; in gradient_block it is the first store of the gradient, and the barrier is found.
# 3 waits and 1 barrier in each kernel, 1 barrier more in level_tables.
SHARES = {
    ("level_tables", COPIED): (22, 27),
    ("gradient_block", COPIED): (7, 11),
    ("gradient_block", LOADED): (4, 4),
}


def _step(inputs: Inputs, seed: int, edit: Callable[[str], str]) -> tuple[Tensor, Tensor, Tensor]:
    q, c = (x.clone().requires_grad_() for x in inputs[:2])
    levels = GrainKeys(inputs.query_keys, inputs.candidate_keys)
    with use(80, seed=seed, edit=edit):
        loss = multi_level_ranking_loss(
            q, c, levels, logit_scale=4.0, backend="triton", product="fused"
        )
        d_queries, d_candidates = torch.autograd.grad(loss, [q, c])
    return loss.detach(), d_queries, d_candidates


@pytest.mark.parametrize(("name", "features"), list(SHARES))
def test_missing_barriers_are_found(
    name: str, features: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One program takes both tiles of columns: what the second does is ordered after the first.
    monkeypatch.setattr("grainrank.triton_passes.PROGRAMS", 1)
    inputs = make_inputs(Shape(33, 129, features, 3), torch.bfloat16, seed=0)
    kernels: list[str] = []

    def keep(ptx: str) -> str:
        kernels.append(ptx)
        return ptx

    expected = _step(inputs, 0, keep)
    (original,) = [ptx for ptx in kernels if f".entry {name}(" in ptx]

    def run(edited: str, seed: int) -> bool:
        actual = _step(inputs, seed, lambda ptx: edited if ptx == original else ptx)
        return all(torch.equal(a, e) for a, e in zip(actual, expected, strict=True))

    assert all(run(original, seed) for seed in SEEDS)
    cases = deletions(original)
    missed: list[str] = []
    with ThreadPoolExecutor(2) as pool:  # g++ takes most of the time; what follows finds its code
        for case, _ in zip(cases, pool.map(lambda c: Kernel(c.ptx, name), cases), strict=True):
            missed += [str(x.deletion) for x in search([case], run, SEEDS) if not x.found]
    found, total = SHARES[name, features]
    share = f"found {len(cases) - len(missed)} of {len(cases)}, expected {found} of {total}"
    assert (len(cases) - len(missed)) * total >= found * len(cases) > 0, f"{share}: {missed}"
