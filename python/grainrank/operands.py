"""The rows of a product: widened, normalised, and back through the normalisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

NORM_EPS = 1e-12
_AGAIN = 128  # rows at a time that are brought to length 1 again, and stay in the cache


class RowPasses(Protocol):
    """The passes of a backend over rows of embeddings."""

    #: Of the rows that the products take.
    operand_dtype: torch.dtype
    #: Whether rows stay as given, and their norms are factors of the similarities; else they are
    #: brought to length 1, unless there are several prefixes.
    factored: bool
    #: Whether queries may be brought to length 1 again for the way back, instead of being kept.
    recomputes_unit: bool

    def product_(self, out: Tensor, a: Tensor, b: Tensor, add: Tensor | None = None) -> None:
        """`out = a @ b + add`, summed in the dtype of `out`; `add` may be `out` itself."""

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
        unit: Tensor | None,
    ) -> None:
        """`d` `[R, D]` times the scale, and back through `norms` `[R]`; or less `along` `[P, R]`
        times the values, in the features that a prefix adds.

        `dots` `[R]`, out: `<values, d>` as it came. `unit`: what `d` is to be divided by first.
        """


@dataclass(frozen=True)
class Operand:
    """Rows as the products take them.

    With `inverse` they are as given, and every prefix has its own inverse norms, which the passes
    multiply the products by. Else with `norms` they have length 1.
    """

    values: Tensor  # [R, D], D of the longest prefix
    norms: Tensor | None = None  # [R], as given; of one prefix
    inverse: Tensor | None = None  # [P, R]
    given: Tensor | None = None  # [R, D], where the values will not be there for the way back

    @staticmethod
    def prepare(
        x: Tensor,
        given: Tensor,
        prefixes: tuple[int, ...],
        normalize: bool,
        passes: RowPasses,
        unit: Tensor | None = None,
    ) -> Operand:
        """From rows `given`, which are `x` in the dtype of the products; a copy is overwritten.

        `unit`: memory for as many rows of length 1, or more.
        """
        values = given[:, : prefixes[-1]]
        if values.stride(1) != 1:
            values = values.contiguous()
        if not normalize:
            return Operand(values)
        norms = passes.empty(len(prefixes), values.shape[0])
        if passes.factored or len(prefixes) > 1:
            passes.norms(values, prefixes, norms, None)
            of_one = norms[0] if len(prefixes) == 1 else None
            return Operand(values, of_one, norms.clamp(min=NORM_EPS).reciprocal_())
        own = values.data_ptr() != x.data_ptr() and values.is_contiguous()
        if own:
            unit = values
        elif unit is None:
            unit = passes.empty(*values.shape)
        unit = unit[: len(values)]
        passes.norms(values, prefixes, norms, unit)
        return Operand(unit, norms[0])

    def finish_(
        self,
        d_values: Tensor,
        prefixes: tuple[int, ...],
        moments: Tensor | None,
        passes: RowPasses,
        unit: Tensor | None,
    ) -> Tensor:
        """In place: from the gradient of `values` per unit of scale to that of the given rows.

        `moments` `[P, R]`: the gradients of the norms' logarithms, where there are several
        prefixes. `unit`: what `d_values` is to be divided by first. Gives the part of each row in
        the gradient of the scale, `[R]`.
        """
        if self.given is not None and self.norms is not None:
            return self._finish_again_(d_values, self.given, self.norms, prefixes, passes)
        along = None
        if moments is not None and self.inverse is not None:
            along = moments * self.inverse.square()
            along.masked_fill_(self.inverse >= 1 / NORM_EPS, 0.0)  # a norm of (nearly) 0
            # Summed over the prefixes that have the feature.
            along = along.flip(0).cumsum(dim=0).flip(0).contiguous()
        dots = passes.empty(d_values.shape[0])
        passes.finish_(d_values, self.values, prefixes, self.norms, along, dots, unit)
        return dots if unit is None else dots / unit

    @staticmethod
    def _finish_again_(
        d_values: Tensor, given: Tensor, norms: Tensor, prefixes: tuple[int, ...], passes: RowPasses
    ) -> Tensor:
        """The same where the values were in the memory of `d_values`."""
        dots = passes.empty(d_values.shape[0])
        unit = passes.empty(min(_AGAIN, d_values.shape[0]), prefixes[-1])
        for start in range(0, d_values.shape[0], _AGAIN):
            here = slice(start, start + _AGAIN)
            d, norm = d_values[here], norms[here]
            passes.norms(given[here], prefixes, torch.empty_like(norm), unit)
            passes.finish_(d, unit, prefixes, norm, None, dots[here], None)
        return dots

    def rows(self, start: int, stop: int) -> Operand:
        inverse = None if self.inverse is None else self.inverse[:, start:stop].contiguous()
        norms = None if self.norms is None else self.norms[start:stop]
        return Operand(self.values[start:stop], norms, inverse)
