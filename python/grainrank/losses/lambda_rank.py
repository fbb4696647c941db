"""LambdaLoss, truncated: pairs weigh what their order means for the head of the ranking."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from ..batch import Batch
from ..distributed.handshake import on_every_rank
from ..heads.lambda_pairs import LambdaScheme, LambdaWeights, lambda_pairs
from ..levels import LevelSource
from ..ranks.blocks import dense_operands
from ..ranks.top_lists import top_lists
from ..uncompiled import uncompiled
from ..validation import check_choice, check_count, check_number
from .evaluate_ranks import evaluate_rows
from .module import LossModule
from .options import SharedOptions, prepare
from .ranks import Gain, gains_of_levels

if TYPE_CHECKING:
    from typing_extensions import Unpack


@uncompiled
@on_every_rank
def lambda_loss(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
    *,
    k: int = 10,
    scheme: LambdaScheme = "ndcg2",
    gain: Gain | Sequence[float] | Tensor = "exp2",
    sigma: float = 1.0,
    mu: float = 10.0,
    temperature: float = 0.05,
    **options: Unpack[SharedOptions],
) -> Tensor:
    """LambdaLoss on the k best candidates of each row and its positives.

        loss_i = sum over pairs (a, b) of w_ab log2(1 + exp(-sigma (z_ia - z_ib)))
        z_ij = s_ij / temperature
        w_ab = |gain(y_a) - gain(y_b)| / ideal DCG at k of row i, times, with D(r) = log2(1 + r),
            "lambdarank"  rho_ab = |1 / D(r_a) - 1 / D(r_b)|
            "ndcg2"       delta_ab = 1 / D(d) - 1 / D(d + 1), d = |r_a - r_b|
            "ndcg2++"     rho_ab + mu delta_ab

    r are exact ranks among all candidates of the row; of equal similarities the candidate with the
    lower number ranks first. Weights have no gradient. The pairs are those with y_a > y_b >= 0,
    both in T_i, and at least one of the two of rank k or better; T_i has the k best candidates of
    the row, and all its positives wherever they stand. So a positive outside of the k best is
    compared with every lower candidate among them, a positive among them with every lower one
    there and with lower positives outside, and a negative outside takes no part. Pairs of level -1
    take no part and have no rank. For k of M and more it is the whole loss.

    Other truncations: LightGBM (`lambdarank_truncation_level`) and sentence-transformers take
    pairs with one of the two in the k best wherever the other stands, so also those of a positive
    there with negatives outside; allRank (`k`) takes pairs with both in the k best, so a positive
    outside has no gradient. LightGBM's logarithm is the natural one; sentence-transformers
    divides by the number of pairs; allRank keeps probabilities above its `eps`, and pairs below it
    have no gradient.

    Args:
        queries: embeddings `[N, D]`.
        candidates: embeddings `[M, D]`.
        levels: a level source; None: candidate i is the positive of query i.
        k: cut-off, 1 or more; it may exceed M. Memory is O(N k + P) for P positives, beside a row
            block.
        scheme: `"ndcg2"` (default), `"ndcg2++"` or `"lambdarank"`, see above.
        gain: of level l: `"exp2"` (default, as in the paper): 2^l - 1; `"linear"`: l; or L + 1
            numbers, from level 0 on, whose gain is 0.
        sigma: of the logistic function.
        mu: share of delta in `"ndcg2++"`; others ignore it.
        temperature: logits are similarity / temperature.
        options: `SharedOptions`; not `direction="joint"`. There are no kernels for this loss:
            `backend` is `"auto"` or `"reference"`.

    Returns:
        The loss, 0-d, or `[N]` for `reduction="none"`; a row without positives adds nothing.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value.

    Source:
        Wang, Li, Golbandi, Bendersky and Najork, The LambdaLoss Framework for Ranking Metric
        Optimization, CIKM 2018: LambdaRank, NDCG-Loss2 and NDCG-Loss2++. The truncation is ours.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> lambda_loss(q, c, DenseLevels(torch.eye(4, dtype=torch.int8) * 2), k=2).dim()
        0
    """
    check_count("k", k, "a cut-off, an integer")
    check_choice("scheme", scheme, ("lambdarank", "ndcg2", "ndcg2++"))
    weights = LambdaWeights(scheme, check_number("mu", mu))
    scale = check_number("sigma", sigma) / check_number("temperature", temperature)
    problem = prepare(queries, candidates, levels, fixed_scale=1.0, **options)
    if problem.backend not in ("auto", "reference"):
        raise ValueError(
            f"lambda_loss is computed by PyTorch, without kernels of its own; "
            f'backend must be "auto" or "reference", got "{problem.backend}"'
        )
    gains = gains_of_levels(gain, problem)

    def of_rows(batch: Batch) -> tuple[Tensor, Tensor]:
        q, c, workspace = dense_operands(batch)
        lists = top_lists(q, c, batch.levels, k, workspace)
        return lambda_pairs(lists, gains, k, weights, scale, workspace), lists.count

    return evaluate_rows(problem, of_rows)


class LambdaLoss(LossModule):
    """`lambda_loss` as a module; the same options, given once.

    Example:
        >>> q, c = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))
        >>> LambdaLoss(k=2, scheme="ndcg2++")(q, c).dim()
        0
    """

    function = staticmethod(lambda_loss)
    shared = SharedOptions
