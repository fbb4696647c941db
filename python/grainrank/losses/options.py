"""The options that all losses share, and what a loss is computed on once they are checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

from torch import Tensor

from ..backends import Backend, check_backend, check_product
from ..batch import Batch, Product
from ..ceilings import resolve_ceilings
from ..distributed import levels as level_shards
from ..distributed.handshake import Handshake
from ..distributed.shards import Shards, Transport
from ..distributed.sums import replicated
from ..levels import LevelSource, as_source
from ..validation import (
    check_choice,
    check_dims,
    check_embeddings,
    check_finite,
    check_memory,
    check_numbers,
    check_scale,
    check_skip_below,
    check_workspace,
    constants,
)
from .joint import JOINT_BLOCKS, Joint, JointBlock, check_joint, make_joint

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh

Reduction = Literal["mean", "sum", "none"]
NanPolicy = Literal["propagate", "raise"]
Direction = Literal["query_to_candidate", "candidate_to_query", "symmetric", "joint"]
_DIRECTIONS = ("query_to_candidate", "candidate_to_query", "symmetric", "joint")


class SharedOptions(TypedDict, total=False):
    """What every loss takes by keyword, next to its own arguments.

    direction: `"query_to_candidate"` (default): every query ranks the candidates.
        `"candidate_to_query"`: every candidate ranks the queries. `"symmetric"`: the mean of both,
        from one product of the similarities (CLIP). `"joint"`: every query ranks the candidates
        among more negatives: the other queries, and what its own candidate (candidate i of query i)
        is compared with, all queries and all candidates (GTE, Li et al. 2023, eq. 2). Of these
        blocks only pairs of level 0 count.
    reduction: `"mean"` (default) over the rows that have a positive at any level, `"sum"`, or
        `"none"`: one loss for each row `[N]`, 0 for a row without a positive; not for
        `"symmetric"`.
    normalize: cosine similarity (default True); False: dot product.
    matryoshka_dims: lengths of prefixes of the features; the loss is the sum over them, each
        normalised by itself, like sentence-transformers' MatryoshkaLoss, for about the price of
        the longest one. None (default): all features.
    matryoshka_weights: a weight for each of them; None (default): 1.
    memory: further candidates `[Q, D]` without gradient, behind the others: an `EmbeddingQueue`'s
        embeddings, say. The level source covers M + Q candidates. They are compared with the
        queries, and rank nothing themselves.
    joint_blocks: where the further negatives of `"joint"` come from: the other queries,
        `"query_query"`; what the query's own candidate is compared with, all queries,
        `"candidate_query"`, and all candidates, `"candidate_candidate"`. Default: all three. Of
        these blocks only pairs of level 0 count.
    query_levels, candidate_levels: level sources of the query-query and candidate-candidate pairs
        of `"joint"`. None (default): other queries and candidates are negatives, or, with
        `GrainKeys`, where they share no key.
    backend: `"auto"` (default), `"triton"`, `"cpu"` or `"reference"`. A named backend never falls
        back.
    product: where the similarities come from in `backend="triton"`. `"fused"`: from a product in
        the kernel; they are never stored. `"vendor"`: from the vendor's library, row block by row
        block. `"auto"` (default): fused for up to 2048 features in float16 and bfloat16, and in
        float32 where PyTorch may use tf32 (`torch.set_float32_matmul_precision("high")`); else, and
        for `matryoshka_dims`, vendor.
    workspace_mb: bound of the row block's memory in MiB; None (default): 64 MiB, 32 MiB on a CPU
        whose products are ours with AMX or AVX-512 (bfloat16 with AMX or with AMD's AVX512-BF16,
        float32 on AMD Zen 5), or 1024 rows where these need more; on other CPUs, 2048 rows as long
        as they need no more than 256 MiB. On the CPU a workspace of up to that is kept for the
        next step. Losses that need the similarities twice (`direction="symmetric"`,
        `reduction="none"`, heads of your own) hold that memory, by default as much as on other
        CPUs, from the forward to the backward: what it holds of the similarities is not multiplied
        again.
    skip_below: leave out of the products dQ and dC, on the CPU, tiles of 256 x 256 pairs in which
        the gradient of every logit is below this share of the largest that a logit can have. Each
        pair left out changes the gradient of its two rows by less than `skip_below * largest *
        scale`, whatever else is in them; `largest` is the sum of the level weights over the number
        of rows, for a loss of softmax terms. The loss itself does not change. It saves up to two
        products of three where similar items stand together in the batch and the temperature is
        low; 2**-12 is a usual choice. None (default): nothing is left out. GPUs compute all.
    group: the ranks whose batches are one: a `ProcessGroup`, or a `DeviceMesh` with one dimension.
        Queries, candidates, keys and memory are this rank's part, of any size, also none; every
        rank returns the loss of the whole batch (of `reduction="none"` its own rows). Under DDP or
        FSDP the gradients are those of one process on the whole batch. Candidate i of a rank
        belongs to its query i where levels is None; a matrix of levels has the columns of its rank,
        or those of all ranks: the candidates of rank 0, of rank 1, .., then their memories. None
        (default): this process alone; `torch.distributed.group.WORLD` is None in a single process.
    transport: `"gather"` (default): one collective brings the candidates of all ranks to each;
        `"ring"`: they pass by, one rank's at a time, for candidates that do not fit.
    nan: `"propagate"` (default): a NaN or infinity in the inputs shows in the loss; `"raise"`:
        ValueError with the row, at the cost of reading the inputs once more.
    """

    direction: Direction
    reduction: Reduction
    normalize: bool
    matryoshka_dims: Sequence[int] | None
    matryoshka_weights: Sequence[float] | None
    memory: Tensor | None
    joint_blocks: Sequence[JointBlock]
    query_levels: LevelSource | None
    candidate_levels: LevelSource | None
    backend: Backend
    product: Product
    workspace_mb: float | None
    skip_below: float | None
    group: ProcessGroup | DeviceMesh | None
    transport: Transport
    nan: NanPolicy


class ScaledOptions(SharedOptions, total=False):
    """The shared options, and the scale: exactly one of the two.

    temperature: logits are similarity / temperature; a number or a 0-d tensor, which may require a
        gradient.
    logit_scale: logits are similarity * logit_scale: the factor itself, not its logarithm.
    """

    temperature: float | Tensor | None
    logit_scale: float | Tensor | None


class Problem(NamedTuple):
    """A loss step with checked options; of `candidate_to_query` the sides are exchanged already."""

    batch: Batch
    backend: str
    direction: Direction
    reduction: Reduction
    dim_weights: tuple[float, ...]  # [P]
    joint: Joint | None

    @property
    def shards(self) -> Shards | None:
        return self.batch.shards


def prepare(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None,
    level_temperatures: Sequence[float] | Tensor | None = None,
    *,
    fixed_scale: float | None = None,
    temperature: float | Tensor | None = None,
    logit_scale: float | Tensor | None = None,
    direction: Direction = "query_to_candidate",
    reduction: Reduction = "mean",
    normalize: bool = True,
    matryoshka_dims: Sequence[int] | None = None,
    matryoshka_weights: Sequence[float] | None = None,
    memory: Tensor | None = None,
    joint_blocks: Sequence[JointBlock] = JOINT_BLOCKS,
    query_levels: LevelSource | None = None,
    candidate_levels: LevelSource | None = None,
    backend: Backend = "auto",
    product: Product = "auto",
    workspace_mb: float | None = None,
    skip_below: float | None = None,
    group: Any = None,
    transport: Transport = "gather",
    nan: NanPolicy = "propagate",
    **unknown: object,
) -> Problem:
    """Checks everything that a user passes; `fixed_scale`: of a loss that has no option for it.

    `group`: None, or the handshake that `on_every_rank` made of it.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.
    """
    _reject_unknown(unknown, fixed_scale is None, temperature, logit_scale)
    together = isinstance(group, Handshake)
    q, c = check_embeddings(queries, candidates, may_be_empty=together)
    check_choice("direction", direction, _DIRECTIONS)
    check_choice("reduction", reduction, ("mean", "sum", "none"))
    check_choice("nan", nan, ("propagate", "raise"))
    check_choice("transport", transport, ("gather", "ring"))
    check_backend(backend, q.device)
    memory = check_memory(memory, c, may_be_empty=together)
    if memory is not None and direction in ("candidate_to_query", "joint"):
        raise ValueError(
            f'memory has candidates for the queries alone, got direction="{direction}"; '
            f'leave memory out, or use "query_to_candidate" or "symmetric"'
        )
    if reduction == "none" and direction == "symmetric":
        raise ValueError(
            'reduction="none" has one loss for each row of one direction, got '
            'direction="symmetric"; call the loss once for each direction'
        )
    if direction != "joint" and (query_levels is not None or candidate_levels is not None):
        raise ValueError(
            f"query_levels and candidate_levels belong to "
            f'direction="joint", got direction="{direction}"; leave them out'
        )
    source = as_source(levels)
    columns = c.shape[0] + (0 if memory is None else memory.shape[0])
    check_levels = level_shards.check_levels if together else LevelSource.check
    check_levels(source, q.shape[0], columns, q.device)
    if direction == "joint":
        check_joint(joint_blocks, (q, c), (query_levels, candidate_levels), check_levels)
    if fixed_scale is not None:
        scale, factors = check_scale(None, fixed_scale, q), None
    elif level_temperatures is None:
        scale, factors = check_scale(temperature, logit_scale, q), None
    else:
        scale, factors = _scales_of_levels(
            level_temperatures, source.max_level, (temperature, logit_scale), q
        )
    if nan == "raise":
        check_finite("queries", q)
        check_finite("candidates", c)
    dims, weights = check_dims(matryoshka_dims, matryoshka_weights, q.shape[1])
    check_product(product, backend, q.dtype, len(dims))
    workspace = check_workspace(workspace_mb)
    shards: Shards | None = None
    if isinstance(group, Handshake):
        sources = source, query_levels, candidate_levels
        shards, whole = group.agree(q, c, memory, sources, transport)
        found = iter(whole)
        source = level_shards.over_ranks(source, shards, found, q.device)
        if query_levels is not None:
            of_queries = shards.of_queries()
            query_levels = level_shards.over_ranks(query_levels, of_queries, found, q.device)
        if candidate_levels is not None:
            candidate_levels = level_shards.over_ranks(candidate_levels, shards, found, q.device)
        scale = replicated(scale, shards)
        factors = None if factors is None else replicated(factors, shards)
    if direction == "candidate_to_query":
        q, c = c, q
        if shards is None:
            source = source.transposed()
        else:
            source, shards = level_shards.transposed(source, shards), shards.swapped()
    batch = Batch(
        q,
        c,
        scale,
        source,
        normalize,
        factors,
        memory=memory,
        dims=dims,
        workspace_mb=workspace,
        product=product,
        skip_below=check_skip_below(skip_below),
        shards=shards,
    )
    batch = resolve_ceilings(batch, backend, columns=direction in ("symmetric", "joint"))
    joint = (
        make_joint(batch, source, joint_blocks, query_levels, candidate_levels)
        if direction == "joint"
        else None
    )
    return Problem(batch, backend, direction, reduction, weights, joint)


def _reject_unknown(
    unknown: dict[str, object], with_scale: bool, temperature: object, logit_scale: object
) -> None:
    names = list(unknown)
    if not with_scale:
        given = {"temperature": temperature, "logit_scale": logit_scale}
        names += [name for name, value in given.items() if value is not None]
    if names:
        shared = (ScaledOptions if with_scale else SharedOptions).__annotations__
        raise TypeError(
            f"this loss has no option {names[0]!r}; next to its own it has {', '.join(shared)}"
        )


def _scales_of_levels(
    level_temperatures: Sequence[float] | Tensor,
    max_level: int,
    others: tuple[Any, Any],
    like: Tensor,
) -> tuple[Tensor, Tensor]:
    """The scale 1, and a channel for each level with the inverse temperature for all pairs."""
    if others != (None, None):
        raise ValueError(
            "level_temperatures takes the place of temperature and logit_scale, got both; "
            "leave the others out"
        )
    scale = check_scale(None, 1.0, like)
    t = _numbers("level_temperatures", level_temperatures, "L", max_level, scale, positive=True)
    return scale, (1 / t)[:, None].expand(max_level, max_level + 1)


def level_numbers(
    name: str,
    values: Sequence[float] | Tensor,
    count: str,
    size: int,
    problem: Problem,
    *,
    positive: bool = False,
) -> Tensor:
    """Numbers for levels, `[size]`, dtype and device of the scale; of a tensor differentiable."""
    numbers = _numbers(name, values, count, size, problem.batch.scale, positive=positive)
    return replicated(numbers, problem.shards)


def _numbers(
    name: str,
    values: Sequence[float] | Tensor,
    count: str,
    size: int,
    scale: Tensor,
    *,
    positive: bool = False,
) -> Tensor:
    numbers = check_numbers(name, values, positive=positive)
    if tuple(numbers.shape) != (size,):
        raise ValueError(
            f"{name} must have {count} = {size} numbers, coarse to fine, "
            f"got shape {tuple(numbers.shape)}"
        )
    if isinstance(values, Tensor):
        return values.to(dtype=scale.dtype, device=scale.device)
    return constants(tuple(map(float, values)), scale.dtype, scale.device)


def reject_reduction(name: str, options: Any) -> None:
    """For losses of the whole batch."""
    if options.get("reduction", "mean") != "mean":
        raise ValueError(
            f'reduction must be "mean" for {name}, which is one number for the batch, '
            f"got {options['reduction']!r}"
        )
