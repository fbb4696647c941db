"""The rows of a product: widened, normalised, and back through the normalisation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

NORM_EPS = 1e-12
FINISH_ROWS = 2048


@dataclass(frozen=True)
class Operand:
    """Rows as the products take them, in the accumulation dtype.

    With one prefix and normalisation they have length 1. With several prefixes they are as given,
    and every prefix has its own inverse norms, which the passes multiply the products by.
    """

    values: Tensor  # [R, D], D of the longest prefix
    norm: Tensor | None = None  # [R, 1], before normalisation
    inverse: Tensor | None = None  # [P, R]

    @staticmethod
    def prepare(
        x: Tensor, given: Tensor, prefixes: tuple[int, ...], normalize: bool, empty: Empty
    ) -> Operand:
        """From rows `given`, which are `x` in the accumulation dtype; a copy is overwritten."""
        values = given[:, : prefixes[-1]]
        if not normalize:
            return Operand(values)
        if len(prefixes) > 1:
            starts = (0, *prefixes[:-1])
            squares = [
                values[:, a:b].square().sum(dim=1) for a, b in zip(starts, prefixes, strict=True)
            ]
            norms = torch.stack(squares).cumsum(dim=0).sqrt_()
            return Operand(values, inverse=norms.clamp_min_(NORM_EPS).reciprocal_())
        norm = torch.linalg.vector_norm(values, dim=1, keepdim=True)
        own = given is not x and values.shape == given.shape
        out = values if own else empty(*values.shape)
        return Operand(torch.div(values, norm.clamp_min(NORM_EPS), out=out), norm)

    def finish_(
        self, d_values: Tensor, scale: Tensor, prefixes: tuple[int, ...], moments: Tensor | None
    ) -> None:
        """In place: from the gradient of `values` per unit of scale to that of the given rows.

        `moments` `[P, R]`: the gradients of the norms' logarithms, where there are `inverse` norms.
        """
        for start in range(0, d_values.shape[0], FINISH_ROWS):
            rows = slice(start, start + FINISH_ROWS)
            d = d_values[rows]
            d.mul_(scale)
            if self.norm is not None:
                norm, unit = self.norm[rows], self.values[rows]
                along = (unit * d).sum(dim=1, keepdim=True)
                along.masked_fill_(norm < NORM_EPS, 0.0)
                d.addcmul_(unit, along, value=-1).div_(norm.clamp_min(NORM_EPS))
            elif moments is not None and self.inverse is not None:
                inverse = self.inverse[:, rows]
                along = moments[:, rows] * inverse.square()
                along.masked_fill_(inverse >= 1 / NORM_EPS, 0.0)  # a norm of (nearly) 0
                along = along.flip(0).cumsum(dim=0).flip(0)  # over the prefixes with the feature
                first = 0
                for p, last in enumerate(prefixes):
                    d[:, first:last].addcmul_(
                        self.values[rows, first:last], along[p, :, None], value=-1
                    )
                    first = last


Empty = Callable[..., Tensor]
