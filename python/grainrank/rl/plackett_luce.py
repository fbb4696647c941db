"""A policy over ranked lists: candidates drawn one after the other, without replacement."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from ..backends import Backend
from ..levels import LevelSource, SparseLevels
from ..losses import level_statistics
from ..ranks.blocks import offsets, rows_of
from ..ranks.entries import entry_gradients, rows_of_entries
from ..reference import EMPTY
from ..uncompiled import uncompiled
from ..validation import (
    MAX_LEVEL,
    accumulation_dtype,
    check_count,
    check_device,
    check_embeddings,
    check_scale,
    check_tensor,
    check_workspace,
)
from .rollouts import check_fixed_levels

_WORKSPACE_MB = 64.0
_COLUMNS = 1024  # of a chunk, at least, while the workspace has room for a row of them
_KEY_BYTES = 32  # of a candidate and rollout: noise, key, and what selects the best ones
_PAIR_BYTES = 16  # of a pair in the chunk: logit, and whether it takes part
_LEVEL_BYTES = 4  # of a pair in the row block: its level, and what makes it
_PIECE = 2**22  # numbers of a piece of gathered rows


@uncompiled
@torch.no_grad()
def sample_plackett_luce(
    queries: Tensor,
    candidates: Tensor,
    k: int,
    *,
    rollouts: int,
    temperature: float | Tensor,
    levels: LevelSource | None = None,
    normalize: bool = True,
    generator: torch.Generator | None = None,
    workspace_mb: float | None = None,
) -> Tensor:
    """Ranked lists of k candidates, drawn without replacement by the model's own similarities.

        p(i_1, .., i_k) = prod_r exp(z_{i_r}) / sum_{j not drawn before r} exp(z_j)
        z_ij = s_ij / temperature

    by the Gumbel trick: the k best of z + noise, in their order. Candidates are streamed; the
    N x M matrix is never stored.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]` of the same dtype and device.
        k: length of a list, 1..M.
        rollouts: G, lists for each query.
        temperature: logits are similarity / temperature; a number or a 0-d tensor.
        levels: a level source: pairs of level -1 are not drawn, other levels do not matter. None:
            all candidates may be drawn.
        normalize: cosine similarity (default); False: dot product.
        generator: of the device of queries; None: the device's own. The same state and workspace
            give the same lists.
        workspace_mb: bound of the memory of a chunk of candidates in MiB, unless one row and
            candidate need more; None (default): 64 MiB.

    Returns:
        int64 `[G, N, k]`, rows of the candidates, in the order in which they were drawn.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: wrong shapes, k > M, a row with fewer than k candidates that may be drawn, or a
            similarity that is NaN.

    Source:
        Plackett, The analysis of permutations, 1975; Yellott 1977 and Kool et al., ICML 2019, arXiv
        1903.06059 (Gumbel top-k).

    Example:
        >>> q, c = torch.eye(3), torch.eye(3)
        >>> generator = torch.Generator().manual_seed(0)
        >>> lists = sample_plackett_luce(
        ...     q, c, 2, rollouts=4, temperature=0.05, generator=generator
        ... )
        >>> lists.shape, lists[:, 2, 0].tolist()
        (torch.Size([4, 3, 2]), [2, 2, 2, 2])
    """
    q, c = check_embeddings(queries, candidates)
    n, m = len(q), len(c)
    check_count("k", k)
    check_count("rollouts", rollouts)
    if k > m:
        raise ValueError(f"k must be at most M = {m}, the number of candidates, got {k}")
    source = None if levels is None else check_fixed_levels(levels, n, m, q.device)
    scale = check_scale(temperature, None, q)
    workspace = (check_workspace(workspace_mb) or _WORKSPACE_MB) * 2**20
    q, c = (rows_of(x, accumulation_dtype(x.dtype), normalize) for x in (q, c))
    parts = [
        _draw(q[a:b], c, scale, None if source is None else source.block(a, b, m, q.device),
              k, rollouts, columns, generator)
        for a, b, columns in _blocks(n, m, k, rollouts, workspace, source is not None)
    ]  # fmt: skip
    keys, lists = (torch.cat(x, dim=1) for x in zip(*parts, strict=True))
    wrong = (keys[..., -1:] == -torch.inf) | keys.isnan()  # [G, N, k]
    if bool(wrong.any()):
        row = int(wrong.any(dim=2).any(dim=0).int().argmax())
        if bool(keys[:, row].isnan().any()):
            raise ValueError(
                f"similarities must not be NaN, got NaN in row {row} of queries; "
                f"look for NaN or infinity in the embeddings"
            )
        raise ValueError(
            f"k must be at most the number of candidates that may be drawn in each row, got {k} "
            f"and fewer candidates of level 0 or more in row {row}; pass a smaller k"
        )
    return lists


def _blocks(
    n: int, m: int, k: int, rollouts: int, workspace: float, with_levels: bool
) -> Iterator[tuple[int, int, int]]:
    """Row blocks `start, stop`, and how many candidates a chunk of each has."""
    pair = rollouts * _KEY_BYTES + _PAIR_BYTES
    of_levels = m * _LEVEL_BYTES if with_levels else 0
    wanted = min(m, max(_COLUMNS, 4 * k))
    rows = min(n, max(1, int(workspace / (wanted * pair + of_levels))))
    columns = max(1, min(m, int((workspace - rows * of_levels) / (rows * pair))))
    for start in range(0, n, rows):
        yield start, min(start + rows, n), columns


def _draw(
    q: Tensor,
    c: Tensor,
    scale: Tensor,
    levels: Tensor | None,
    k: int,
    rollouts: int,
    columns: int,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """The k best keys of each row and rollout, `[G, R, k]`, and their candidates."""
    best = q.new_empty(rollouts, len(q), 0)
    at = torch.empty(best.shape, dtype=torch.int64, device=q.device)
    for start in range(0, len(c), columns):
        stop = min(start + columns, len(c))
        z = (q @ c[start:stop].T).mul_(scale)  # [R, C]
        if levels is not None:
            z.masked_fill_(levels[:, start:stop] < 0, -torch.inf)
        # In float64: float32 has too few values where keys are highest.
        noise = torch.empty(rollouts, *z.shape, dtype=torch.float64, device=q.device)
        noise = noise.uniform_(generator=generator).log_().neg_()  # exponential
        noise = noise.to(z.dtype).log_()  # [G, R, C]
        keys, column = torch.sub(z, noise, out=noise).topk(min(k, stop - start), dim=2)
        best, at = torch.cat([best, keys], dim=2), torch.cat([at, column + start], dim=2)
        if best.shape[2] > k:
            best, order = best.topk(k, dim=2)
            at = at.gather(2, order)
    return best, at


@uncompiled
def plackett_luce_log_prob(
    queries: Tensor,
    candidates: Tensor,
    lists: Tensor,
    *,
    temperature: float | Tensor,
    levels: LevelSource | None = None,
    normalize: bool = True,
    per_draw: bool = False,
    backend: Backend = "auto",
    workspace_mb: float | None = None,
) -> Tensor:
    """Log-probabilities of ranked lists, see `sample_plackett_luce`; differentiable.

        log p = sum_r (z_{i_r} - log sum_{j not drawn before r} exp(z_j))

    The sum over the candidates that no list of the row has comes from one `level_statistics`; those
    that some list has are added to it. Nothing is subtracted, so the result is as good at low
    temperatures, where the drawn ones have nearly all the mass, as anywhere. Memory is O(G N U)
    beside the row block, for U candidates in the lists of a row (at most G k); no `[.., D]`.

    Args:
        queries: embeddings `[N, D]`, float16, bfloat16, float32 or float64.
        candidates: embeddings `[M, D]` of the same dtype and device.
        lists: int64 `[G, N, k]`, rows of the candidates in their order, without repetition.
        temperature: logits are similarity / temperature; a number or a 0-d tensor, which may
            require a gradient.
        levels: as they were for the draw, up to level 14.
        normalize: cosine similarity (default); False: dot product.
        per_draw: `[G, N, k]`, the terms of the sum: tokens for `grpo_loss`. False (default): their
            sum.
        backend: `"auto"`, `"triton"`, `"cuda"`, `"cpu"` or `"reference"`, as for
            `level_statistics`.
        workspace_mb: bound of the row block's memory in MiB, likewise.

    Returns:
        `[G, N]`, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value; a list
            that cannot have been drawn.

    Source:
        Plackett 1975; as a policy over rankings: Oosterhuis, arXiv 2105.00855.

    Example:
        >>> q, c = torch.eye(3), torch.eye(3)
        >>> lists = torch.tensor([[[0, 1, 2]] * 3])
        >>> plackett_luce_log_prob(q, c, lists, temperature=0.5).exp()
        tensor([[0.3935, 0.0938, 0.0127]])
    """
    q, c = check_embeddings(queries, candidates)
    n, m = len(q), len(c)
    source = None if levels is None else check_fixed_levels(levels, n, m, q.device)
    lists = _check_lists(lists, n, m, q.device)
    g, _, k = lists.shape
    scale = check_scale(temperature, None, q)

    drawn, first, order = _distinct(lists)
    width = int(first.sum(dim=1).max())  # U
    indptr, column = offsets(first.sum(dim=1)), drawn[first]  # E entries
    rest = _rest(q, c, source, indptr, column, temperature, normalize, backend, workspace_mb)

    sides = (rows_of(x, accumulation_dtype(x.dtype), normalize) for x in (q, c))
    z = _RowDots.apply(*sides, indptr, column) * scale  # type: ignore[no-untyped-call]  # [E]
    place = (first.cumsum(dim=1) - 1)[first]  # [E], within the row
    row = rows_of_entries(indptr, len(column))
    union = z.new_full((n, width), EMPTY).index_put((row, place), z)  # [N, U]
    own = torch.empty_like(drawn).scatter_(1, order, first.cumsum(dim=1) - 1)
    own = own.view(n, g, k)  # where each list has its candidates in `union`
    of_list = union.gather(1, own.flatten(1)).view(n, g, k).transpose(0, 1)  # [G, N, k]

    left = torch.stack([union.scatter(1, own[:, i], EMPTY).logsumexp(dim=1) for i in range(g)])
    left = torch.logaddexp(left, rest)  # [G, N], what the list never drew
    terms: list[Tensor] = []
    for i in reversed(range(k)):
        left = torch.logaddexp(left, of_list[..., i])
        terms.append(of_list[..., i] - left)
    per = torch.stack(terms[::-1], dim=2)
    return per if per_draw else per.sum(dim=2)


def _rest(
    q: Tensor,
    c: Tensor,
    source: LevelSource | None,
    indptr: Tensor,
    column: Tensor,
    temperature: float | Tensor,
    normalize: bool,
    backend: Backend,
    workspace_mb: float | None,
) -> Tensor:
    """`[N]`: log-sum-exp over what may be drawn and is in no list: what is has a level of its own.

    Raises where a list has a candidate that may not be drawn.
    """
    top = 1 if source is None else source.max_level + 1
    if top > MAX_LEVEL:
        raise ValueError(
            f"levels must end at {MAX_LEVEL - 1}, as drawn candidates take one more, "
            f"got max_level = {top - 1}; only level -1 matters here, pass others as 0"
        )
    marked: LevelSource = SparseLevels(indptr, column, torch.full_like(column, top), len(c), top)
    if source is not None:
        marked = source | marked
    tables = level_statistics(
        q, c, marked, temperature=temperature, normalize=normalize, backend=backend,
        workspace_mb=workspace_mb,
    )  # fmt: skip
    missing = tables.count[:, top] != indptr.diff()
    if bool(missing.any()):
        raise ValueError(
            f"lists must hold candidates of level 0 or more, got one of level -1 in row "
            f"{int(missing.int().argmax())}; pass the levels with which the lists were drawn"
        )
    rest: Tensor = tables.lse[:, :top].logsumexp(dim=1)
    return rest


def _distinct(lists: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """All that a row drew, ascending `[N, G k]`, where each candidate stands first, and the order.

    Raises where a list repeats a candidate.
    """
    ordered = lists.sort(dim=2).values
    if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
        raise ValueError(
            "lists must not repeat a candidate, got one twice in a list; "
            "draw them with sample_plackett_luce"
        )
    drawn, order = lists.transpose(0, 1).flatten(1).sort(dim=1)
    first = torch.ones_like(drawn, dtype=torch.bool)
    first[:, 1:] = drawn[:, 1:] != drawn[:, :-1]
    return drawn, first, order


class _RowDots(torch.autograd.Function):
    """`<q_i, c_j>` of the entries (i, j), without `[entries, D]`."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, c: Tensor, indptr: Tensor, column: Tensor) -> Tensor:
        row = rows_of_entries(indptr, len(column))
        ctx.save_for_backward(q, c, indptr, column)
        size = max(1, _PIECE // q.shape[1])
        pieces = zip(row.split(size), column.split(size), strict=True)
        return torch.cat([(q[i] * c[j]).sum(dim=1) for i, j in pieces])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        q, c, indptr, column = ctx.saved_tensors
        d_q, d_c = entry_gradients(q, c, indptr, column, d, ctx.needs_input_grad[:2])
        return d_q, d_c, None, None


def _check_lists(lists: object, n: int, m: int, device: torch.device) -> Tensor:
    tensor = check_tensor("lists", lists)
    if tensor.dtype != torch.int64:
        raise TypeError(f"lists must be int64, got {tensor.dtype}; pass lists.long()")
    if tensor.dim() != 3 or tensor.shape[1] != n or 0 in tensor.shape:
        raise ValueError(
            f"lists must have shape [G, N, k] = [G, {n}, k], got {list(tensor.shape)}; "
            f"pass what sample_plackett_luce returned for these queries"
        )
    check_device("lists", tensor, device)
    low, high = tensor.aminmax()
    if int(low) < 0 or int(high) >= m:
        raise ValueError(
            f"lists must hold rows of candidates, 0..{m - 1}, got {int(low)}..{int(high)}"
        )
    return tensor
