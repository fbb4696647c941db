"""The rule of accuracy, the inputs and the shapes that the tests and the benchmarks share.

One rule holds for every backend and dtype, forward and gradients:

    error(actual, truth) <= 2 * (error(reference, truth) + eps * max|truth|)

with `truth` the reference in float64 on the same (already rounded) inputs, `reference` the
reference in the dtype under test, and eps of the dtype of the result.

Draws. The error of a tensor is the largest one of its elements, which is a steady number for many
elements and a matter of luck for a few: the reference may happen to hit a scalar (a loss, the
scale's gradient) exactly. So a result is judged on several independent draws of the inputs at once:
on both sides the error is the largest one over all elements of all draws, and so is `max|truth|`.
The factor stays 2, and one draw suffices where a tensor has many elements.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from . import GrainKeys

DTYPES = {
    "fp32": torch.float32,
    "fp64": torch.float64,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
_SENTINEL = 1e29  # an empty level holds -1e30, which would make max|truth| meaningless


class Draw(NamedTuple):
    """One result for one draw of the inputs, three ways; the same shape each."""

    actual: Tensor  #: of the backend under test
    reference: Tensor  #: of the reference, same dtype as `actual`
    truth: Tensor  #: float64
    truth_low: Tensor | None = None  #: what float64 rounded away from the truth, if known


def _worst(value: Tensor, draw: Draw) -> float:
    """Largest distance from the truth. The first difference is exact for values close to it."""
    distance = value.detach().double() - draw.truth
    if draw.truth_low is not None:
        distance = distance - draw.truth_low
    return float(distance.abs().max())


def assert_accurate(name: str, *draws: Draw) -> None:
    """Raises where a result breaks the rule of accuracy.

    Args:
        name: what the result is, for the message.
        draws: the result for each draw of the inputs. Draws without elements are left out.

    Raises:
        AssertionError: the error is above the bound, or NaN; the message has both.
        ValueError: draws that cannot be judged: shapes or dtypes that differ, a truth that is not
            finite, or one that holds the value of empty levels.

    Example:
        >>> truth = torch.tensor([1.0, 2.0], dtype=torch.float64)
        >>> assert_accurate("sum", Draw(truth.float(), truth.float(), truth))
        >>> assert_accurate("sum", Draw(truth.float() + 1e-5, truth.float(), truth))
        Traceback (most recent call last):
        ...
        AssertionError: sum: error 1.00e-05 is above 2 * (reference 0.00e+00 + eps 1.19e-07 * 2)...
    """
    draws = tuple(draw for draw in draws if draw.truth.numel() > 0)
    for draw in draws:
        shapes = [tuple(t.shape) for t in draw if t is not None]
        if len(set(shapes)) != 1 or draw.actual.dtype != draw.reference.dtype:
            raise ValueError(
                f"{name}: actual, reference and truth must have one shape, and the first two one "
                f"dtype, got {shapes}, {draw.actual.dtype} and {draw.reference.dtype}"
            )
        if not bool((draw.truth.abs() < _SENTINEL).all()):
            raise ValueError(
                f"{name}: truth must be finite and free of the value of empty levels; "
                f"select the elements with count > 0 first"
            )
    if not draws:
        return
    dtype = draws[0].actual.dtype
    eps = torch.finfo(dtype).eps
    magnitude = max(float(draw.truth.abs().max()) for draw in draws)
    # `max` of Python may drop a NaN; a sum keeps it.
    errors = [_worst(draw.actual, draw) for draw in draws]
    error = math.nan if any(math.isnan(e) for e in errors) else max(errors)
    reference = max(_worst(draw.reference, draw) for draw in draws)
    bound = 2 * (reference + eps * magnitude)
    if not error <= bound:
        raise AssertionError(
            f"{name}: error {error:.2e} is above 2 * (reference {reference:.2e} + eps {eps:.2e} "
            f"* {magnitude:.4g}) = {bound:.2e} ({len(draws)} draws, {dtype})"
        )


class Shape(NamedTuple):
    """A point of the shape table; letters as in the dimension key."""

    N: int
    M: int
    D: int
    K: int = 3

    def id(self, dtype: torch.dtype) -> str:
        """`N63-M65-D40-K3-bf16`."""
        names = {value: name for name, value in DTYPES.items()}
        return f"N{self.N}-M{self.M}-D{self.D}-K{self.K}-{names[dtype]}"


#: Every pair of N and M of 1, 7, 63, 64, 65, 1003; D and K take turns.
SHAPES = tuple(
    Shape(n, m, (40, 8, 33, 1, 64)[(row + 2 * column) % 5], 1 + (row + column) % 4)
    for row, n in enumerate((1, 7, 63, 64, 65, 1003))
    for column, m in enumerate((1, 7, 63, 64, 65, 1003))
)


class Inputs(NamedTuple):
    """One batch: embeddings and the keys of their grains."""

    queries: Tensor  #: `[N, D]`
    candidates: Tensor  #: `[M, D]`
    query_keys: Tensor  #: int64 `[N, K]`, coarse to fine, -1 unknown
    candidate_keys: Tensor  #: int64 `[M, K]`

    @property
    def levels(self) -> GrainKeys:
        return GrainKeys(self.query_keys, self.candidate_keys)

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same embeddings in another dtype."""
        q, c = self.queries.to(dtype), self.candidates.to(dtype)
        return self._replace(queries=q, candidates=c)


def make_inputs(
    shape: Shape, dtype: torch.dtype = torch.float32, *, seed: int = 0, unknown: float = 0.1
) -> Inputs:
    """Embeddings that lie around the nodes of a label tree, and their keys.

    Candidate i has the label of query i; the finest grain has about one label for two candidates,
    so positives are sparse and coarser levels are larger. Everything is drawn in float64 and
    rounded last: the dtypes see the same batch.

    Args:
        shape: N, M, D and K.
        dtype: of the embeddings.
        seed: of the draw.
        unknown: share of the items whose keys are unknown from a random grain on.

    Example:
        >>> inputs = make_inputs(Shape(N=4, M=6, D=8, K=2))
        >>> inputs.queries.shape, inputs.candidate_keys.shape
        (torch.Size([4, 8]), torch.Size([6, 2]))
    """
    generator = torch.Generator().manual_seed(seed)
    n, m, d, k = shape
    leaves = max(2, max(n, m) // 2)
    leaf = torch.randint(leaves, (n + m,), generator=generator)
    paired = min(n, m)
    leaf[n : n + paired] = leaf[:paired]
    keys = torch.empty(n + m, k, dtype=torch.int64)
    x = torch.randn(n + m, d, dtype=torch.float64, generator=generator)
    for grain in range(k):
        nodes = round(leaves ** ((grain + 1) / k))
        keys[:, grain] = leaf * nodes // leaves
        centre = torch.randn(nodes, d, dtype=torch.float64, generator=generator)
        x += centre[keys[:, grain]]
    known = torch.randint(k, (n + m, 1), generator=generator)
    hidden = torch.rand(n + m, 1, generator=generator) < unknown
    keys.masked_fill_(hidden & (torch.arange(k) >= known), -1)
    return Inputs(x[:n].to(dtype), x[n:].to(dtype), keys[:n].clone(), keys[n:].clone())


def make_dense_levels(shape: Shape, max_level: int, *, seed: int = 0) -> Tensor:
    """int8 `[N, M]`: a tenth ignored (-1), a fifth positive (1..L), the rest 0.

    Example:
        >>> make_dense_levels(Shape(N=2, M=3, D=8), max_level=8).shape
        torch.Size([2, 3])
    """
    generator = torch.Generator().manual_seed(seed)
    size = (shape.N, shape.M)
    levels = torch.randint(1, max_level + 1, size, generator=generator)
    kind = torch.rand(size, generator=generator)
    levels[kind > 0.3] = 0
    levels[kind < 0.1] = -1
    return levels.to(torch.int8)
