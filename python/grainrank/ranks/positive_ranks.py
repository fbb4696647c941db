"""The public function."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..backends import Backend, check_backend
from ..batch import Batch
from ..ceilings import resolve_ceilings
from ..levels import LevelSource, as_source
from ..levels.ceilings import FalseNegativeMargin
from ..top_k.rows import Rows, as_rows
from ..uncompiled import uncompiled
from ..validation import (
    accumulation_dtype,
    check_choice,
    check_embeddings,
    check_number,
    check_workspace,
)
from .compute import exact, smooth
from .surrogates import surrogate_of
from .table import PositiveRanks

Ties = Literal["first", "last", "optimistic", "pessimistic"]
_TIES = ("first", "last", "optimistic", "pessimistic")


@uncompiled
def positive_ranks(
    queries: Tensor | np.ndarray[Any, Any],
    candidates: Tensor | np.ndarray[Any, Any],
    levels: LevelSource | None = None,
    *,
    temperature: float | None = None,
    surrogate: Literal["sigmoid", "upper_bound"] = "sigmoid",
    ties: Ties | None = None,
    normalize: bool = True,
    backend: Backend = "auto",
    workspace_mb: float | None = None,
) -> PositiveRanks:
    """For every positive the number of candidates of each level above it.

        exact:  above[p, l] = |{j: y_ij = l, s_ij above s_ip}|
        smooth: above[p, l] = sum over {j: y_ij = l, j != p} of h(s_ij - s_ip)

    with `h(x) = sigmoid(x / temperature)` for `surrogate="sigmoid"`, and for `"upper_bound"` that
    of `ranks.surrogates` for lower levels and the step for the others. Smooth ones are
    differentiable; the backward computes the similarities again.

    Args:
        queries: embeddings `[N, D]`, float16, bfloat16, float32 or float64. For exact ranks a
            tensor, or a numpy array or memmap that is read some rows at a time.
        candidates: embeddings `[M, D]`, likewise, of the same dtype and, if both are tensors, on
            the same device. Arrays go to the device of the tensor, chunk by chunk.
        levels: a level source; None: candidate i is the positive of query i. The positives are its
            pairs of level 1 and more.
        temperature: of the smooth step, in units of the similarity; None (default): exact.
        surrogate: which smooth step.
        ties: of exact ranks, what equal similarities mean. `"first"` (None): the candidate with the
            lower number is above; `"last"`: the one with the higher number, as trec_eval orders
            ids that are in order; `"optimistic"`: none of them is above; `"pessimistic"`: all
            others are. On the CPU equal embeddings have equal similarities; products of other
            backends may differ in the last bit by where a candidate stands.
        normalize: cosine similarity (default); False: dot product.
        backend: as for the losses: `"auto"`, `"reference"`, `"cpu"`, `"cuda"` or `"triton"`. Exact
            ranks of levels with a `false_negative_margin` are the reference's on the CPU.
        workspace_mb: bound of the row block's memory in MiB; None (default): 256 MiB for exact
            ranks, and as for the losses for smooth ones. With a GPU, the reference, or a
            `false_negative_margin` a block of exact ranks holds the similarities of its rows, and
            all candidates are read once for each; on the CPU it holds their levels, a byte a pair.

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
    check_choice("ties", ties or "first", _TIES)
    check_choice("surrogate", surrogate, ("sigmoid", "upper_bound"))
    tau = None if temperature is None else check_number("temperature", temperature)
    if tau is not None and ties is not None:
        raise ValueError(
            f'ties belong to exact ranks, got "{ties}" with a temperature; leave one of them out'
        )
    source = as_source(levels)
    workspace = check_workspace(workspace_mb)
    if isinstance(queries, np.ndarray) or isinstance(candidates, np.ndarray):
        q, c, batch = _of_arrays(queries, candidates, source, normalize)
    else:
        batch = _batch(*check_embeddings(queries, candidates), source, normalize)
        q, c = (as_rows("", x) for x in (batch.queries, batch.candidates))
    batch = batch._replace(workspace_mb=workspace)
    check_backend(backend, batch.queries.device)
    source.check(len(q), len(c), batch.queries.device)
    batch = resolve_ceilings(batch, backend, columns=False)
    if tau is not None:
        if isinstance(queries, np.ndarray) or isinstance(candidates, np.ndarray):
            raise TypeError(
                "queries and candidates must be tensors where a temperature is given, got arrays; "
                "convert them with torch.from_numpy"
            )
        return smooth(batch, backend, surrogate_of(surrogate, tau))
    with torch.no_grad():
        return exact(q, c, batch, backend, ties or "first")


def _batch(q: Tensor, c: Tensor, source: LevelSource, normalize: bool) -> Batch:
    one = torch.ones((), dtype=accumulation_dtype(q.dtype), device=q.device)
    return Batch(q, c, one, source, normalize)


def _of_arrays(
    queries: object, candidates: object, source: LevelSource, normalize: bool
) -> tuple[Rows, Rows, Batch]:
    """Rows, and a batch of the same sizes that stands for them."""
    q = as_rows("queries", queries)
    c = as_rows("candidates", candidates, q.features)
    for name, rows in (("queries", q), ("candidates", c)):
        if len(rows) == 0:
            raise ValueError(f"{name} must have at least one row, got none; skip an empty set")
    if isinstance(source, FalseNegativeMargin):
        raise TypeError(
            "queries and candidates must be tensors where levels have a false_negative_margin, "
            "got arrays; convert them with torch.from_numpy"
        )
    devices = [x.values.device for x in (q, c) if isinstance(x.values, Tensor)]
    like = torch.empty(
        (), dtype=torch.promote_types(q.dtype, c.dtype), device=devices[0] if devices else "cpu"
    )
    q_like, c_like = (like.expand(len(rows), rows.features) for rows in (q, c))
    return q, c, _batch(q_like, c_like, source, normalize)
