"""Every loss as its formula reads, over sets of pairs: slow, in float64, with torch's autograd.

Each takes logits z `[N, M]` and levels as nested lists, and gives the losses of the rows `[N]`, or
one number. Nothing here is shared with grainrank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

Levels = list[list[int]]
ZERO = torch.zeros((), dtype=torch.float64)


def rows(z: Tensor, y: Levels) -> Iterator[tuple[Tensor, dict[int, list[int]]]]:
    """Each row with its columns by level, ignored ones left out."""
    for i, levels in enumerate(y):
        columns: dict[int, list[int]] = {}
        for j, level in enumerate(levels):
            if level >= 0:
                columns.setdefault(level, []).append(j)
        yield z[i], columns


def at(columns: dict[int, list[int]], wanted: Callable[[int], bool]) -> list[int]:
    return sorted(j for level, js in columns.items() if wanted(level) for j in js)


def by_row(z: Tensor, y: Levels, loss: Callable[[Tensor, dict[int, list[int]]], Tensor]) -> Tensor:
    """0 for rows without positives."""
    return torch.stack(
        [
            loss(row, columns) if any(level > 0 for level in columns) else row.sum() * 0
            for row, columns in rows(z, y)
        ]
    )


def log_sum(x: Tensor) -> Tensor:
    return torch.logsumexp(x, 0)


def info_nce(z: Tensor, y: Levels) -> Tensor:
    return by_row(
        z,
        y,
        lambda row, c: (
            log_sum(row[at(c, lambda _: True)]) - log_sum(row[at(c, lambda level: level > 0)])
        ),
    )


def sup_con(z: Tensor, y: Levels, lowest: int = 1) -> Tensor:
    def loss(row: Tensor, c: dict[int, list[int]]) -> Tensor:
        every = log_sum(row[at(c, lambda _: True)])
        terms = [every - row[p] for p in at(c, lambda level: level >= lowest)]
        return torch.stack(terms).mean() if terms else row.sum() * 0

    return by_row(z, y, loss)


def hard_negative_nce(z: Tensor, y: Levels, hardness: float) -> Tensor:
    def loss(row: Tensor, c: dict[int, list[int]]) -> Tensor:
        if 0 not in c:
            return row.sum() * 0
        n = row[c[0]]
        weight = torch.exp(hardness * n) / torch.exp(hardness * n).mean()
        negatives = (weight * torch.exp(n)).sum()
        positives = torch.exp(row[at(c, lambda level: level > 0)]).sum()
        return -torch.log(positives / (positives + negatives))

    return by_row(z, y, loss)


def rince(z_of: Sequence[Tensor], y: Levels, form: str) -> Tensor:
    """`z_of[k - 1]`: the logits at level k's temperature."""
    size = len(z_of)

    def loss(i: int, c: dict[int, list[int]]) -> Tensor:
        total = z_of[0][i].sum() * 0
        for k in range(1, size + 1):
            row = z_of[k - 1][i]
            p, n = c.get(k, []), at(c, lambda level, k=k: level < k)  # type: ignore[misc]
            if not p:
                continue
            if form == "out" or (form == "out-in" and k == size):
                if n:
                    terms = [
                        torch.log(1 + torch.exp(log_sum(row[n]) - row[positive])) for positive in p
                    ]
                    total = total + torch.stack(terms).mean()
            else:
                total = total + log_sum(row[p + n]) - log_sum(row[p])
        return total / size

    return torch.stack([loss(i, c) for i, (_, c) in enumerate(rows(z_of[0], y))])


def hmlc(z: Tensor, y: Levels, form: str, size: int) -> Tensor:
    losses, finer = [], []
    for layer in range(1, size + 1):
        k = size + 1 - layer
        has = [any(level >= k for level in row) for row in y]
        of_rows = sup_con(z, y, lowest=k)
        of_layer = of_rows.sum() / max(1, sum(has))
        finer.append(of_layer)
        kept = of_layer if form == "hmc" else torch.stack(finer).max()
        finer[-1] = kept
        losses.append(kept if form == "hce" else 2 ** (1 / layer) * kept)
    return torch.stack(losses).sum() / size


def csl(z: Tensor, y: Levels, margins: Sequence[float]) -> Tensor:
    size = len(margins)

    def loss(row: Tensor, c: dict[int, list[int]]) -> Tensor:
        total = row.sum() * 0
        for k in range(1, size + 1):
            pairs = [
                torch.exp(row[j] - row[p] + margins[k - 1])
                for p in c.get(size, [])
                for j in at(c, lambda level, k=k: level < k)  # type: ignore[misc]
            ]
            if pairs:
                total = total + torch.log(1 + torch.stack(pairs).sum())
        return total

    return by_row(z, y, loss)


def pairs_of(cells: list[tuple[int, Tensor]], margin: Callable[[int, int], float]) -> Tensor:
    terms = [torch.exp(low - high + margin(a, b)) for a, high in cells for b, low in cells if a > b]
    return torch.log(1 + torch.stack(terms).sum()) if terms else cells[0][1] * 0


def pairwise(z: Tensor, y: Levels, margin: Callable[[int, int], float], scope: str) -> Tensor:
    cells = [
        [(level, z[i, j]) for j, level in enumerate(row) if level >= 0] for i, row in enumerate(y)
    ]
    if scope == "batch":
        return pairs_of([cell for row in cells for cell in row], margin)
    return torch.stack([pairs_of(row, margin) if row else z[0].sum() * 0 for row in cells])


def list_net(z: Tensor, y: Levels) -> Tensor:
    def loss(row: Tensor, c: dict[int, list[int]]) -> Tensor:
        every = at(c, lambda _: True)
        label = {j: level for level, js in c.items() for j in js}
        target = torch.softmax(torch.tensor([float(label[j]) for j in every]).double(), 0)
        return -(target * torch.log_softmax(row[every], 0)).sum()

    return by_row(z, y, loss)


def softmax_ranking(z: Tensor, y: Levels, gain: Callable[[int], float]) -> Tensor:
    def loss(row: Tensor, c: dict[int, list[int]]) -> Tensor:
        every = log_sum(row[at(c, lambda _: True)])
        return torch.stack(
            [gain(level) * (every - row[j]) for level in c if level > 0 for j in c[level]]
        ).sum()

    return by_row(z, y, loss)


def unique_softmax(z: Tensor, y: Levels, gain: Callable[[int], float]) -> Tensor:
    def loss(row: Tensor, c: dict[int, list[int]]) -> Tensor:
        total = row.sum() * 0
        for level, js in c.items():
            below = at(c, lambda other, level=level: other < level)  # type: ignore[misc]
            if level == 0 or not below:
                continue
            for j in js:
                total = total - gain(level) * torch.log_softmax(row[[j, *below]], 0)[0]
        return total

    return by_row(z, y, loss)


def circle(s: Tensor, y: Levels, gamma: float, m: float) -> Tensor:
    def loss(row: Tensor, c: dict[int, list[int]]) -> Tensor:
        p, n = row[at(c, lambda level: level > 0)], row[c.get(0, [])]
        if len(n) == 0:
            return row.sum() * 0
        a_p = (1 + m - p.detach()).clamp_min(0)
        a_n = (n.detach() + m).clamp_min(0)
        total = (
            torch.exp(gamma * a_n * (n - m)).sum() * torch.exp(-gamma * a_p * (p - (1 - m))).sum()
        )
        return torch.log(1 + total)

    return by_row(s, y, loss)


def multi_similarity(s: Tensor, y: Levels, alpha: float, beta: float, base: float) -> Tensor:
    def loss(row: Tensor, c: dict[int, list[int]]) -> Tensor:
        p, n = row[at(c, lambda level: level > 0)], row[c.get(0, [])]
        pull = torch.log(1 + torch.exp(-alpha * (p - base)).sum()) / alpha
        return pull + torch.log(1 + torch.exp(beta * (n - base)).sum()) / beta

    return by_row(s, y, loss)


def sigmoid(z: Tensor, y: Levels, bias: Tensor, weights: Sequence[float]) -> Tensor:
    """The sum over all pairs."""
    total = z.sum() * 0
    for i, row in enumerate(y):
        for j, level in enumerate(row):
            if level >= 0:
                sign = 1 if level > 0 else -1
                probability = torch.sigmoid(sign * (z[i, j] + bias))
                total = total - weights[level] * torch.log(probability)
    return total


def joint_info_nce(
    z: Tensor, y: Levels, queries: tuple[Tensor, Levels], candidates: tuple[Tensor, Levels]
) -> Tensor:
    """The negatives of row i: its own, those of candidate i among the queries, other queries, and
    other candidates.
    """
    losses = []
    for i, row in enumerate(y):
        positives = [z[i, j] for j, level in enumerate(row) if level > 0]
        negatives = [z[i, j] for j, level in enumerate(row) if level == 0]
        negatives += [z[k, i] for k in range(len(y)) if y[k][i] == 0]
        for logits, levels in (queries, candidates):
            negatives += [logits[i, j] for j, level in enumerate(levels[i]) if level == 0]
        if positives:
            every = log_sum(torch.stack(positives + negatives))
            losses.append(every - log_sum(torch.stack(positives)))
        else:
            losses.append(z[i].sum() * 0)
    return torch.stack(losses)
