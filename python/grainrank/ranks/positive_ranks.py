"""The public function."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..batch import Batch
from ..ceilings import resolve_ceilings
from ..levels import LevelSource, as_source
from ..row_blocks import DEFAULT_WORKSPACE
from ..validation import (
    accumulation_dtype,
    check_choice,
    check_embeddings,
    check_finite,
    check_number,
    check_workspace,
)
from .blocks import rows_of
from .exact import exact_ranks
from .smooth import smooth_ranks
from .table import PositiveRanks

Ties = Literal["first", "last", "optimistic", "pessimistic"]
_TIES = ("first", "last", "optimistic", "pessimistic")


def positive_ranks(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    temperature: float | None = None,
    surrogate: Literal["sigmoid", "upper_bound"] = "sigmoid",
    ties: Ties | None = None,
    normalize: bool = True,
    workspace_mb: float | None = None,
) -> PositiveRanks:
    """For every positive the number of candidates of each level above it.

        exact:  above[p, l] = |{j: y_ij = l, s_ij above s_ip}|
        smooth: above[p, l] = sum over {j: y_ij = l, j != p} of h(s_ij - s_ip)

    with `h(x) = sigmoid(x / temperature)` for `surrogate="sigmoid"`, and for `"upper_bound"` that
    of `ranks.surrogates` for lower levels and the step for the others. Smooth ones are
    differentiable; the backward computes the similarities again.

    Args:
        queries: embeddings `[N, D]`, float16, bfloat16, float32 or float64.
        candidates: embeddings `[M, D]` of the same dtype and device.
        levels: a level source; None: candidate i is the positive of query i. The positives are its
            pairs of level 1 and more.
        temperature: of the smooth step, in units of the similarity; None (default): exact.
        surrogate: which smooth step.
        ties: of exact ranks, what equal similarities mean. `"first"` (None): the candidate with the
            lower number is above; `"last"`: the one with the higher number, as trec_eval orders
            ids that are in order; `"optimistic"`: none of them is above; `"pessimistic"`: all
            others are. Equal candidates may differ in the last bit of their similarity by where
            they stand in the product.
        normalize: cosine similarity (default); False: dot product.
        workspace_mb: bound of the row block's memory in MiB; None (default): 64 MiB.

    Returns:
        `PositiveRanks`: O(P (L + 1)) memory for P positives.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value; a NaN
            or infinity in the embeddings, for exact ranks.

    Example:
        >>> q = torch.tensor([[1.0, 0.0]])
        >>> c = torch.tensor([[1.0, 0.2], [1.0, 0.1], [0.0, 1.0]])
        >>> ranks = positive_ranks(q, c, DenseLevels(torch.tensor([[1, 0, 2]])))
        >>> ranks.rank.tolist(), ranks.above.tolist()
        ([2, 3], [[1, 0, 0], [1, 1, 0]])
    """
    q, c = check_embeddings(queries, candidates)
    source = as_source(levels)
    source.check(q.shape[0], c.shape[0], q.device)
    check_choice("ties", ties or "first", _TIES)
    check_choice("surrogate", surrogate, ("sigmoid", "upper_bound"))
    workspace = check_workspace(workspace_mb) or DEFAULT_WORKSPACE / 2**20
    tau = None if temperature is None else check_number("temperature", temperature)
    one = torch.ones((), dtype=accumulation_dtype(q.dtype), device=q.device)
    source = resolve_ceilings(Batch(q, c, one, source, normalize), "auto", columns=False).levels
    q, c = (rows_of(x, one.dtype, normalize) for x in (q, c))
    if tau is None:
        # A NaN would stand above everything.
        check_finite("queries", q)
        check_finite("candidates", c)
        with torch.no_grad():
            return PositiveRanks(*exact_ranks(q, c, source, ties or "first", workspace))
    if ties is not None:
        raise ValueError(
            f'ties belong to exact ranks, got "{ties}" with a temperature; leave one of them out'
        )
    return smooth_ranks(q, c, source, tau, surrogate, workspace)
