"""The level tables themselves, for a loss of one's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from ..autograd import level_tables
from ..backends import Backend
from ..batch import Product
from ..distributed.handshake import on_every_rank
from ..distributed.shards import Transport
from ..distributed.sums import replicated
from ..levels import LevelSource
from ..statistics import LevelStatistics, statistics_of
from ..validation import check_choice, check_scalar
from .options import Direction, level_numbers, prepare

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@on_every_rank
def level_statistics(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    level_scales: Sequence[float] | Tensor | None = None,
    logit_bias: float | Tensor | None = None,
    softplus_against: Literal["lower", "unrelated"] | None = None,
    direction: Direction = "query_to_candidate",
    normalize: bool = True,
    memory: Tensor | None = None,
    backend: Backend = "auto",
    product: Product = "auto",
    workspace_mb: float | None = None,
    group: ProcessGroup | DeviceMesh | None = None,
    transport: Transport = "gather",
) -> Any:
    """The tables from which a graded loss is made, differentiable, without the N x M matrix.

    A loss head is ordinary PyTorch on these tables; see the example (`head_loss` makes a loss of
    it). `lse`, `neg_lse`, `total`, `highest`, `lowest` and `softplus` are differentiable in
    queries, candidates and all scales; the backward computes the similarities again.

    Args:
        queries: embeddings `[N, D]`, float16, bfloat16, float32 or float64.
        candidates: embeddings `[M, D]` of the same dtype and device.
        levels: a level source; None: candidate i is the positive of query i.
        temperature: logits are similarity / temperature; number or 0-d tensor. Exactly one of
            `temperature` and `logit_scale` must be given.
        logit_scale: logits are similarity * logit_scale; number or 0-d tensor.
        level_scales: L + 1 further factors of the logits, one for each level, from level 0 on;
            positive; a tensor may require a gradient. None: 1.
        logit_bias: added to the logits; number or 0-d tensor.
        softplus_against: also give the sums `softplus` over the positives of each level, against
            the levels below (`"lower"`) or level 0 (`"unrelated"`).
        direction: `"query_to_candidate"` (default), `"candidate_to_query"`, or `"symmetric"`: a
            pair of statistics, from one product.
        normalize: cosine similarity (default); False: dot product.
        memory: further candidates `[Q, D]` without gradient, see `SharedOptions`.
        backend: `"auto"`, `"triton"`, `"cpu"` or `"reference"`.
        product: `"auto"`, `"fused"` or `"vendor"`, see `SharedOptions`.
        group: the ranks whose candidates the queries are compared with, see `SharedOptions`. The
            tables are those of this rank's rows; their gradients are those of the sum of what all
            ranks do with them. Candidates are numbered as in the whole batch.
        transport: `"gather"` (default) or `"ring"`, see `SharedOptions`.
        workspace_mb: bound of the row block's memory in MiB; None: see `SharedOptions`.

    Returns:
        `LevelStatistics` of the rows, float32 (float64 for float64 inputs); in the symmetric
        direction the pair of those of the queries and those of the candidates, `[M, L + 1]`.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Example:
        A loss of your own: the hardest negative stays a margin below the lowest positive.

        >>> generator = torch.Generator().manual_seed(0)
        >>> q, c = torch.randn(2, 8, 16, generator=generator).requires_grad_().unbind()
        >>> stats = level_statistics(q, c, temperature=0.1)
        >>> has = stats.count[:, 1] > 0
        >>> loss = torch.relu(stats.highest[:, 0] - stats.lowest[:, 1] + 2.0)[has].mean()
        >>> loss.backward()
    """
    check_choice("direction", direction, ("query_to_candidate", "candidate_to_query", "symmetric"))
    if softplus_against is not None:
        check_choice("softplus_against", softplus_against, ("lower", "unrelated"))
    both = direction == "symmetric"
    if both and softplus_against is not None:
        raise ValueError(
            'softplus_against belongs to one direction, got direction="symmetric"; '
            "call level_statistics once for each direction"
        )
    problem = prepare(
        queries, candidates, levels, temperature=temperature, logit_scale=logit_scale,
        direction=direction, normalize=normalize, memory=memory, backend=backend,
        product=product, workspace_mb=workspace_mb, group=group, transport=transport,
    )  # fmt: skip
    batch = problem.batch
    if level_scales is not None:
        size = batch.levels.max_level + 1
        factors = level_numbers("level_scales", level_scales, "L + 1", size, problem, positive=True)
        batch = batch._replace(factors=factors[None])
    rows, columns = level_tables(
        batch, backend, full=True, columns=both, softplus=softplus_against or ""
    )
    of_rows, *of_columns = (statistics_of(t, 0) for t in (rows, columns) if t is not None)
    if logit_bias is not None:
        bias = replicated(check_scalar("logit_bias", logit_bias, batch.scale), batch.shards)
        of_rows, *of_columns = (_shifted(t, bias) for t in (of_rows, *of_columns))
    return (of_rows, *of_columns) if both else of_rows


def _shifted(t: LevelStatistics, bias: Tensor) -> LevelStatistics:
    """The tables of the logits plus a bias; empty levels stay empty."""
    shift = (t.count > 0).to(t.lse.dtype) * bias
    positive = torch.cat([torch.zeros_like(shift[:, :1]), shift[:, 1:]], dim=1)
    return t._replace(
        lse=t.lse + shift,
        neg_lse=t.neg_lse - positive,
        total=t.total + shift * t.count,
        highest=t.highest + shift,
        lowest=t.lowest + shift,
    )
