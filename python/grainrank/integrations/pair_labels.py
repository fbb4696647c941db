"""The levels of a batch of pairs, from its label column."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from ..levels import GrainKeys, LevelSource, SparseLevels
from ..validation import check_choice, check_count, check_integers

Label = Literal["grains", "grades"]


class PairLabels:
    """How a label column says what the candidates of a batch are to its queries.

    A batch has N queries and C columns of candidates `[N, D]`: the positives, and C - 1 columns of
    hard negatives. The M = C N candidates stand column after column.

    Args:
        label: `"grains"`: a row is the grain path of the pair, K integers, coarse to fine (a
            negative one is unknown); a plain integer is a class. `"grades"`: a row is the
            relevance of the query's own candidates, C integers from -1 (ignored), 0 (negative) to
            `max_level`; all other candidates are negatives. None: no label column, the first
            candidate of each query is its positive.
        num_grains: K, for rows that also hold the paths of the hard negatives, one after the other,
            C K integers. None (default): a row is one path, and hard negatives share no grain.
        max_level: L, the highest grade; needed for `"grades"` alone.

    Raises:
        TypeError, ValueError: an argument that does not fit the label.
    """

    def __init__(
        self, label: Label | None, num_grains: int | None = None, max_level: int | None = None
    ) -> None:
        if label is not None:
            check_choice("label", label, ("grains", "grades"))
        if (label == "grades") != (max_level is not None):
            raise ValueError(
                f'max_level must be given for label="grades" and for no other, got label={label!r} '
                f"and max_level={max_level!r}; pass the highest grade of the data set"
            )
        if num_grains is not None:
            if label != "grains":
                raise ValueError(f'num_grains is an option of label="grains", got label={label!r}')
            check_count("num_grains", num_grains)
        if max_level is not None:
            check_count("max_level", max_level)
        self.label, self.num_grains, self.max_level = label, num_grains, max_level

    def levels(
        self, labels: Tensor | None, queries: int, columns: int, device: torch.device
    ) -> LevelSource | None:
        """Of N = `queries` and `columns` times N candidates; `labels` `[N, ...]`."""
        if self.label is None:
            return None
        if labels is None:
            raise ValueError(
                f"the batch has no labels, which label={self.label!r} needs; add a label column to "
                f"the data set, or use label=None: the first candidate of each query is its "
                f"positive"
            )
        rows = labels[:, None] if isinstance(labels, Tensor) and labels.dim() == 1 else labels
        table = check_integers("labels", rows, "[N, K]", 2).to(device)
        if len(table) != queries:
            raise ValueError(f"labels must have N = {queries} rows, got {len(table)}")
        return (
            self._grains(table, columns) if self.label == "grains" else self._grades(table, columns)
        )

    def _grains(self, table: Tensor, columns: int) -> LevelSource:
        n, width = table.shape
        if self.num_grains is None:
            unknown = table.new_full(((columns - 1) * n, width), -1)
            return GrainKeys(table, torch.cat([table, unknown]))
        if width != columns * self.num_grains:
            raise ValueError(
                f"labels must have {columns} columns of candidates x {self.num_grains} grains = "
                f"{columns * self.num_grains} numbers in a row, got {width}; leave num_grains out "
                f"if a row is the path of the pair alone"
            )
        paths = table.reshape(n, columns, self.num_grains)
        return GrainKeys(paths[:, 0], paths.transpose(0, 1).reshape(columns * n, self.num_grains))

    def _grades(self, table: Tensor, columns: int) -> LevelSource:
        n, width = table.shape
        if width != columns:
            raise ValueError(
                f"labels must have a grade for each of the {columns} candidates of a query, got "
                f"{width} numbers in a row"
            )
        own = torch.arange(n, device=table.device)[:, None]
        column = own + n * torch.arange(columns, device=table.device)  # [N, C]
        starts = columns * torch.arange(n + 1, device=table.device)
        return SparseLevels(
            starts, column.flatten(), table.flatten(), columns * n, max_level=self.max_level
        )

    def config(self) -> dict[str, str | int | None]:
        """For a model card."""
        options: dict[str, str | int | None] = {
            "num_grains": self.num_grains,
            "max_level": self.max_level,
        }
        given: dict[str, str | int | None] = {"label": self.label}
        return given | {k: v for k, v in options.items() if v is not None}
