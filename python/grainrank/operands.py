"""The rows of a product: widened, normalised, and back through the normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

NORM_EPS = 1e-12


class RowPasses(Protocol):
    """The passes of a backend over rows of embeddings."""

    def empty(self, *shape: int) -> Tensor:
        """Memory of the accumulation dtype for a result."""

    def norms(
        self, x: Tensor, prefixes: tuple[int, ...], norms: Tensor, unit: Tensor | None
    ) -> None:
        """Fills the norms `[P, R]` of the prefixes of rows `[R, D]`, and `unit` `[R, D]` with the
        rows over their last norm, which counts as `NORM_EPS` at least.
        """

    def finish_(
        self,
        d: Tensor,
        values: Tensor,
        prefixes: tuple[int, ...],
        norms: Tensor | None,
        along: Tensor | None,
        dots: Tensor,
    ) -> None:
        """`d` `[R, D]` times the scale, and back through `norms` `[R]`; or less `along` `[P, R]`
        times the values, in the features that a prefix adds.

        `dots` `[R]`, out: `<values, d>` as it came.
        """


@dataclass(frozen=True)
class Operand:
    """Rows as the products take them, in the accumulation dtype.

    With one prefix and normalisation they have length 1. With several prefixes they are as given,
    and every prefix has its own inverse norms, which the passes multiply the products by.
    """

    values: Tensor  # [R, D], D of the longest prefix
    norms: Tensor | None = None  # [R], before normalisation
    inverse: Tensor | None = None  # [P, R]

    @staticmethod
    def prepare(
        x: Tensor, given: Tensor, prefixes: tuple[int, ...], normalize: bool, passes: RowPasses
    ) -> Operand:
        """From rows `given`, which are `x` in the accumulation dtype; a copy is overwritten."""
        values = given[:, : prefixes[-1]]
        if values.stride(1) != 1:
            values = values.contiguous()
        if not normalize:
            return Operand(values)
        norms = passes.empty(len(prefixes), values.shape[0])
        if len(prefixes) > 1:
            passes.norms(values, prefixes, norms, None)
            return Operand(values, inverse=norms.clamp_min_(NORM_EPS).reciprocal_())
        own = values.data_ptr() != x.data_ptr() and values.is_contiguous()
        unit = values if own else passes.empty(*values.shape)
        passes.norms(values, prefixes, norms, unit)
        return Operand(unit, norms[0])

    def finish_(
        self,
        d_values: Tensor,
        prefixes: tuple[int, ...],
        moments: Tensor | None,
        passes: RowPasses,
    ) -> Tensor:
        """In place: from the gradient of `values` per unit of scale to that of the given rows.

        `moments` `[P, R]`: the gradients of the norms' logarithms, where there are `inverse` norms.
        Gives the part of each row in the gradient of the scale, `[R]`.
        """
        along = None
        if moments is not None and self.inverse is not None:
            along = moments * self.inverse.square()
            along.masked_fill_(self.inverse >= 1 / NORM_EPS, 0.0)  # a norm of (nearly) 0
            # Summed over the prefixes that have the feature.
            along = along.flip(0).cumsum(dim=0).flip(0).contiguous()
        dots = passes.empty(d_values.shape[0])
        passes.finish_(d_values, self.values, prefixes, self.norms, along, dots)
        return dots

    def first(self, rows: int) -> Operand:
        """The first `rows` rows."""
        return Operand(
            self.values[:rows],
            None if self.norms is None else self.norms[:rows],
            None if self.inverse is None else self.inverse[:, :rows].contiguous(),
        )
