"""Batches in which several grains meet: anchors, their hard negatives and their relatives."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Sampler

from ..levels import LevelSource
from ..top_k import search
from ..uncompiled import uncompiled
from ..validation import check_embeddings, check_integers, check_length, check_workspace
from .rollouts import check_fixed_levels

_WORKSPACE_MB = 128.0
_LEVEL_BYTES = 8  # of a pair in the row block: its level, and what makes it
_TRIES = 8  # random draws among relatives before they are walked through

Integers = NDArray[np.int64]


class GradedBatchSampler(Sampler[list[int]]):
    """Batches of anchors, of mined hard negatives of these and of items that share a coarse grain.

        hard       = round(hard_share * batch_size)
        neighbours = round(neighbour_share * batch_size)
        anchors    = batch_size - hard - neighbours

    A random batch of a large corpus has hardly a pair that shares a fine grain: rewards and graded
    losses then see one level. Here each batch has, in this order:

    - the anchors: all N items in random order, each once an epoch;
    - hard negatives: the anchors in turn, each time one at random from the anchor's row of `hard`;
    - neighbours: the anchors in turn, and for these the levels K, K - 1, .., 1 in turn: an item at
      random that shares so many leading keys with the anchor, and no more;
    - random items in the place of what there is not enough of.

    No item is twice in a batch; hard negatives, neighbours and random items may come again in later
    batches, and are anchors in one. Where an anchor has no hard negative left that is not in the
    batch, the next anchor gives one more; where no item is left at a level, one of the nearest
    coarser level comes, if there is any.

    For `DataLoader(batch_sampler=...)`. Batches depend on `seed` and the epoch alone, and are the
    same on every rank: rank r of W takes `batch[r::W]`, and `group=` joins them again.

    Args:
        keys: grains of the N items, integers `[N, K]`, coarse to fine, a negative key is unknown
            and equals nothing, as for `GrainKeys`.
        batch_size: items of a batch, 1..N.
        hard: mined hard negatives of each item, integers `[N, H]`, rows of items, -1: none; None
            (default): random items in their place, unless `hard_share` is 0.
        hard_share, neighbour_share: shares of the batch, 0 or more, that leave an anchor at least.
        seed: 0 or more.
        drop_last: True (default): leave out the last batch where too few anchors are left for it;
            these are no anchors in this epoch. False: it has these, and fewer of the others in the
            same proportion.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype or value.

    Source:
        Batches that mix grains: after ELVA, arXiv 2606.20280; `set_epoch` as in torch's
        `DistributedSampler`.

    Example:
        >>> from grainrank.rl.sampler import GradedBatchSampler
        >>> keys = torch.stack([torch.arange(12) // 6, torch.arange(12) // 2], dim=1)
        >>> sampler = GradedBatchSampler(keys, 6, hard_share=0, neighbour_share=0.5)
        >>> batches = list(sampler)
        >>> len(sampler), [len(set(batch)) for batch in batches]
        (4, [6, 6, 6, 6])
        >>> sorted(item for batch in batches for item in batch[:3]) == list(range(12))
        True
    """

    def __init__(
        self,
        keys: Tensor,
        batch_size: int,
        *,
        hard: Tensor | None = None,
        hard_share: float = 0.25,
        neighbour_share: float = 0.25,
        seed: int = 0,
        drop_last: bool = True,
    ) -> None:
        table = check_integers("keys", keys, "[N, K]", 2)
        self._n, self._levels = table.shape
        if self._levels == 0:
            raise ValueError(f"keys must have a column or more, got {tuple(table.shape)}")
        self.batch_size = _integer("batch_size", batch_size, 1)
        if self.batch_size > self._n:
            raise ValueError(
                f"batch_size must be at most N = {self._n}, as no item is twice in a batch, "
                f"got {batch_size}"
            )
        self.seed, self.epoch, self.drop_last = _integer("seed", seed, 0), 0, drop_last
        self.num_hard = _part("hard_share", hard_share, batch_size)
        self.num_neighbours = _part("neighbour_share", neighbour_share, batch_size)
        self.num_anchors = batch_size - self.num_hard - self.num_neighbours
        if self.num_anchors < 1:
            raise ValueError(
                f"hard_share and neighbour_share must leave an anchor of the {batch_size} items, "
                f"got {hard_share} and {neighbour_share}; pass smaller shares"
            )
        self._groups = _Groups(table.cpu().numpy().astype(np.int64))
        self.set_hard(hard)

    def set_epoch(self, epoch: int) -> None:
        """The batches of another epoch; without it every epoch has the same ones."""
        self.epoch = _integer("epoch", epoch, 0)

    def set_hard(self, hard: Tensor | None) -> None:
        """Other hard negatives, `[N, H]`: those of a model that has moved on."""
        if hard is None:
            self._hard = np.full((self._n, 0), -1, dtype=np.int64)
            return
        table = check_integers("hard", hard, "[N, H]", 2)
        check_length("hard", table, self._n, "N", "keys")
        if table.numel() > 0 and not -1 <= int(table.min()) <= int(table.max()) < self._n:
            raise ValueError(
                f"hard must hold rows of items, 0..{self._n - 1}, or -1, "
                f"got {int(table.min())}..{int(table.max())}; mine among the items themselves"
            )
        self._hard = table.cpu().numpy().astype(np.int64)

    def __len__(self) -> int:
        whole, rest = divmod(self._n, self.num_anchors)
        return whole + (rest > 0 and not self.drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        random = np.random.default_rng([self.seed, self.epoch])
        order = random.permutation(self._n)
        for i in range(len(self)):
            anchors = order[i * self.num_anchors : (i + 1) * self.num_anchors]
            yield self._batch(anchors.tolist(), random)

    def _batch(self, anchors: list[int], random: np.random.Generator) -> list[int]:
        part = len(anchors) / self.num_anchors  # 1 but for the last batch
        batch = dict.fromkeys(anchors)  # in order, and quick to look into
        until = len(anchors) + round(part * self.num_hard)
        missing = until - self._add_hard(batch, anchors, until, random)
        until += round(part * self.num_neighbours) - missing
        self._add_neighbours(batch, anchors, until, random)
        while len(batch) < until + missing:
            batch[int(random.integers(self._n))] = None
        return list(batch)

    def _add_hard(
        self, batch: dict[int, None], anchors: list[int], until: int, random: np.random.Generator
    ) -> int:
        """How many items there are now, `until` at most."""
        left = [self._hard[anchor][self._hard[anchor] >= 0] for anchor in anchors]
        rows = [iter(random.permutation(row).tolist()) for row in left if len(row) > 0]
        while rows and len(batch) < until:
            open_ = []
            for row in rows:
                item = next((x for x in row if x not in batch), None)
                if item is not None:
                    batch[item] = None
                    open_.append(row)
                if len(batch) == until:
                    break
            rows = open_
        return len(batch)

    def _add_neighbours(
        self, batch: dict[int, None], anchors: list[int], until: int, random: np.random.Generator
    ) -> None:
        level, found = self._levels, True
        while found:
            found = False
            for anchor in anchors:
                if len(batch) >= until:
                    return
                item = self._groups.relative(anchor, level, batch, random)
                level = level - 1 if level > 1 else self._levels
                if item is not None:
                    batch[item] = None
                    found = True


class _Groups:
    """Items in the order of their keys, where those that share a prefix stand together."""

    def __init__(self, keys: Integers) -> None:
        n = len(keys)
        self.order = np.lexsort(keys.T[::-1])  # [N], the first column first
        self.place = np.empty(n, dtype=np.int64)
        self.place[self.order] = np.arange(n)
        ordered = keys[self.order]
        changes = np.zeros(n, dtype=bool)
        changes[0] = True
        first, last = [np.zeros(n, dtype=np.int64)], [np.full(n, n)]
        for column in ordered.T:
            changes[1:] |= column[1:] != column[:-1]
            changes |= column < 0  # unknown: equals nothing
            starts = np.flatnonzero(changes)
            group = np.cumsum(changes) - 1
            first.append(starts[group])
            last.append(np.append(starts[1:], n)[group])
        self.first, self.last = np.stack(first), np.stack(last)  # [K + 1, N], of each place

    def relative(
        self, item: int, level: int, taken: dict[int, None], random: np.random.Generator
    ) -> int | None:
        """One at random that is not taken and shares `level` leading keys, else fewer, but one."""
        place = self.place[item]
        inner = place, place + 1
        if level < len(self.first) - 1:
            inner = self.first[level + 1, place], self.last[level + 1, place]
        for k in range(level, 0, -1):
            outer = self.first[k, place], self.last[k, place]
            found = self._between(outer, inner, taken, random)
            if found is not None:
                return found
            inner = outer
        return None

    def _between(
        self,
        outer: tuple[int, int],
        inner: tuple[int, int],
        taken: dict[int, None],
        random: np.random.Generator,
    ) -> int | None:
        """Of the places that `outer` has and `inner` has not."""
        before, hole = int(inner[0] - outer[0]), int(inner[1] - inner[0])
        size = int(outer[1] - outer[0]) - hole

        def item(number: int) -> int:
            return int(self.order[outer[0] + number + (hole if number >= before else 0)])

        for _ in range(min(size, _TRIES)):
            found = item(int(random.integers(size)))
            if found not in taken:
                return found
        free = [i for i in map(item, range(size)) if i not in taken]
        return free[int(random.integers(len(free)))] if free else None


@uncompiled
@torch.no_grad()
def mine_hard_negatives(
    queries: Tensor,
    candidates: Tensor,
    levels: LevelSource | None,
    k: int,
    *,
    below: int,
    normalize: bool = True,
    workspace_mb: float | None = None,
) -> Tensor:
    """The k candidates of each query that score highest among those of a low level.

        {j: 0 <= y_ij < below}, by s_ij, highest first

    Exact; queries are searched some rows at a time, and N x M is never stored. For
    `GradedBatchSampler` the candidates have to be its items: of pairs, `candidates[targets]`.

    Args:
        queries: embeddings `[N, D]`, float16, bfloat16, float32 or float64.
        candidates: embeddings `[M, D]` of the same dtype and device.
        levels: a level source; None: candidate i is the positive of query i. Pairs of level -1 are
            left out.
        k: how many, 1 or more.
        below: pairs of this level and higher are positives, 1..L + 1: L for all that is not the
            exact match, 1 for what shares no grain.
        normalize: cosine similarity (default); False: dot product.
        workspace_mb: bound of the memory of a block in MiB, unless one row needs more; None
            (default): 128 MiB.

    Returns:
        int64 `[N, k]`, rows of the candidates, on the device of queries; equal scores in the order
        of their rows. -1 where there are no more.

    Raises:
        TypeError, ValueError: an argument of the wrong type, shape, dtype, device or value; a
            similarity that is NaN.

    Example:
        >>> from grainrank.rl.sampler import mine_hard_negatives
        >>> q = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
        >>> keys = torch.tensor([[0, 0], [0, 1], [1, 2], [1, 3]])
        >>> mine_hard_negatives(q, q, GrainKeys(keys, keys), 2, below=1)
        tensor([[2, 3],
                [2, 3],
                [1, 0],
                [1, 0]])
    """
    q, c = check_embeddings(queries, candidates)
    n, m = len(q), len(c)
    source = check_fixed_levels(levels, n, m, q.device)
    _integer("k", k, 1)
    if _integer("below", below, 1) > source.max_level + 1:
        raise ValueError(f"below must lie in 1..L + 1 = {source.max_level + 1}, got {below}")
    workspace = check_workspace(workspace_mb) or _WORKSPACE_MB
    rows = max(1, int(workspace / 2 * 2**20 / (_LEVEL_BYTES * m)))
    mined = torch.full((n, k), -1, dtype=torch.int64, device=q.device)
    for start in range(0, n, rows):
        stop = min(start + rows, n)
        level = source.block(start, stop, m, q.device)  # [R, M]
        allowed = (level >= 0) & (level < below)
        mined[start:stop] = _best(q[start:stop], c, allowed, k, normalize, workspace / 2)
    return mined


def _best(
    q: Tensor, c: Tensor, allowed: Tensor, k: int, normalize: bool, workspace_mb: float
) -> Tensor:
    """`[R, k]`: ever deeper searches for the rows whose best candidates are not allowed."""
    n, m = allowed.shape
    found = torch.full((n, k), -1, dtype=torch.int64, device=q.device)
    wanted = allowed.sum(dim=1).clamp(max=k)  # [R]
    open_ = torch.nonzero(wanted > 0)[:, 0]
    depth = min(m, 2 * k)
    while len(open_) > 0:
        lists = search(q[open_], c, depth, normalize=normalize, workspace_mb=workspace_mb).indices
        good = allowed[open_].gather(1, lists)  # [O, depth]
        place = good.cumsum(dim=1) - 1
        row, column = torch.nonzero(good & (place < k), as_tuple=True)
        found[open_[row], place[row, column]] = lists[row, column]
        open_ = open_[good.sum(dim=1) < wanted[open_]]
        depth = min(m, 4 * depth)
    return found


def _integer(name: str, value: object, low: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    if value < low:
        raise ValueError(f"{name} must be {low} or more, got {value}")
    return value


def _part(name: str, share: object, batch_size: int) -> int:
    if isinstance(share, bool) or not isinstance(share, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(share).__name__}")
    if not (math.isfinite(share) and 0 <= share < 1):
        raise ValueError(f"{name} must be a share of the batch, 0 <= {name} < 1, got {share}")
    return round(share * batch_size)
