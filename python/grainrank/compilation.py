"""Compiles the kernels of a loss before the first step."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .levels import LevelSource

_compiling = False  # of all threads: a backward runs in one of its own


def only_compiling() -> bool:
    """Whether kernels are to be compiled and not launched."""
    return _compiling


def warmup(
    loss: Callable[..., Tensor],
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None = None,
) -> None:
    """Compiles the Triton kernels of a loss, forward and backward, and runs none of them.

    A first step compiles for some seconds: in distributed training longer than a short timeout of
    the process group, and nothing may compile while a CUDA graph is captured. Call this once before
    the first step, with a batch like those to come: of the same dtypes, D, level source and
    options, and with numbers of rows that are multiples of 16 if theirs are. Triton keeps what is
    compiled, on the disk too. With other backends it is one step of the loss.

    Args:
        loss: a loss module, or a function of queries, candidates and levels, such as
            `functools.partial(info_nce_loss, temperature=0.05)`.
        queries: embeddings `[N, D]`; what they hold does not matter.
        candidates: embeddings `[M, D]`.
        levels: a level source, as the loss takes it.

    Raises:
        TypeError, ValueError: what the loss raises.

    Example:
        >>> import functools, grainrank
        >>> loss = functools.partial(grainrank.info_nce_loss, temperature=0.05)
        >>> grainrank.warmup(loss, torch.zeros(4, 8), torch.zeros(4, 8))
    """
    global _compiling
    q, c = (x.detach().requires_grad_() for x in (queries, candidates))
    before, _compiling = _compiling, True
    try:
        with torch.enable_grad():
            torch.autograd.grad(loss(q, c, levels).sum(), [q, c])
    finally:
        _compiling = before
