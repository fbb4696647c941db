"""Batches of anchors, hard negatives and neighbours, and the mining of hard negatives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from profiling import profiled
from test_level_sources import sources
from torch import Tensor
from torch.utils.data import DataLoader

from grainrank import DenseLevels, GrainKeys
from grainrank.rl import sampler as sampler_module
from grainrank.rl.sampler import GradedBatchSampler, mine_hard_negatives

N = 240
ITEMS = torch.arange(N)
KEYS = torch.stack([ITEMS // 60, ITEMS // 12, ITEMS // 3], dim=1)[
    torch.randperm(N, generator=torch.Generator().manual_seed(9))
]  # three grains, in no order
LEVELS = GrainKeys(KEYS, KEYS).block(0, N, N)
SHARES: dict[str, dict[str, float]] = {
    "both": {},
    "uneven": {"hard_share": 0.1, "neighbour_share": 0.4},
    "hard": {"hard_share": 0.5, "neighbour_share": 0},
    "neighbours": {"hard_share": 0, "neighbour_share": 0.5},
    "anchors": {"hard_share": 0, "neighbour_share": 0},
}


def hard_negatives(width: int = 6) -> Tensor:
    """Items of another coarse grain, [N, H]; item 5 has none, item 7 a single one."""
    offset = torch.arange(1, width + 1) + N // 2
    hard = (ITEMS[:, None] + offset) % N
    hard[5], hard[7, 1:] = -1, -1
    return hard


def parts(sampler: GradedBatchSampler, batch: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Anchors, hard negatives, and the rest."""
    a, h = sampler.num_anchors, sampler.num_hard
    return batch[:a], batch[a : a + h], batch[a + h :]


# Batches.


@pytest.mark.parametrize("name", SHARES)
def test_shares_and_anchors(name: str) -> None:
    shares = {"hard_share": 0.25, "neighbour_share": 0.25} | SHARES[name]
    hard = hard_negatives()
    sampler = GradedBatchSampler(KEYS, 40, hard=hard, **SHARES[name])
    batches = list(sampler)
    h, b = (round(40 * share) for share in shares.values())
    assert (sampler.num_anchors, sampler.num_hard, sampler.num_neighbours) == (40 - h - b, h, b)
    assert len(batches) == len(sampler) == N // (40 - h - b)
    anchors = [item for batch in batches for item in batch[: 40 - h - b]]
    assert len(set(anchors)) == len(anchors) == len(batches) * (40 - h - b)
    for batch in batches:
        assert len(batch) == len(set(batch)) == 40
        own, of_hard, others = parts(sampler, batch)
        assert set(of_hard) <= set(hard[own].flatten().tolist())
        assert (LEVELS[own][:, others] >= 1).any(dim=0).all()


def test_every_item_is_an_anchor_once() -> None:
    sampler = GradedBatchSampler(KEYS, 20, hard=hard_negatives())
    assert N % sampler.num_anchors == 0
    anchors = [item for batch in sampler for item in batch[: sampler.num_anchors]]
    assert sorted(anchors) == list(range(N))


@pytest.mark.parametrize("drop_last", [True, False])
def test_the_last_batch(drop_last: bool) -> None:
    sampler = GradedBatchSampler(KEYS, 28, hard=hard_negatives(), drop_last=drop_last)
    a = sampler.num_anchors
    assert (a, N % a) == (14, 2)
    batches = list(sampler)
    assert len(batches) == len(sampler) == N // a + (not drop_last)
    assert all(len(batch) == 28 for batch in batches[: N // a])
    if not drop_last:
        assert len(batches[-1]) == len(set(batches[-1])) == 4  # 2 anchors and 1 + 1 others
        anchors = [i for batch in batches[:-1] for i in batch[:a]] + batches[-1][:2]
        assert sorted(anchors) == list(range(N))


def test_neighbours_share_one_grain_after_the_other() -> None:
    """The t-th neighbour belongs to the t-th anchor, and shares K, K - 1, .., 1 keys with it."""
    sampler = GradedBatchSampler(KEYS, 20, hard_share=0, neighbour_share=0.5)
    exact, total = 0, 0
    for batch in sampler:
        anchors, neighbours = batch[:10], batch[10:]
        for t, (anchor, neighbour) in enumerate(zip(anchors, neighbours, strict=True)):
            wanted = 3 - t % 3
            found = int(LEVELS[anchor, neighbour])
            assert 1 <= found <= wanted
            left = (LEVELS[anchor] == wanted).index_fill(0, torch.tensor(batch[: 10 + t]), False)
            assert found == wanted or not left.any()
            exact, total = exact + (found == wanted), total + 1
    assert exact > 0.9 * total


def test_neighbours_are_drawn_evenly() -> None:
    keys = torch.zeros(50, 1, dtype=torch.int64)
    sampler = GradedBatchSampler(keys, 2, hard_share=0, neighbour_share=0.5)
    count = torch.zeros(50)
    for epoch in range(40):
        sampler.set_epoch(epoch)
        for _, neighbour in sampler:
            count[neighbour] += 1
    assert count.sum() == 2000
    chi_square = float(((count - 40) ** 2 / 40).sum())
    assert 20 < chi_square < 95  # 49 degrees of freedom


def test_hard_negatives_of_the_anchors_in_turn() -> None:
    """Each anchor has one before any has two, but those that have no more."""
    hard = hard_negatives()
    sampler = GradedBatchSampler(KEYS, 20, hard=hard, hard_share=0.5, neighbour_share=0)
    for batch in sampler:
        anchors, of_hard = batch[:10], batch[10:]
        own = [anchor for anchor in anchors if anchor != 5]
        # 7 may find its only one taken; then, as for 5, the first anchor gives a second one.
        if 7 not in anchors:
            for anchor, item in zip(own, of_hard, strict=False):
                assert item in hard[anchor]
        assert set(of_hard) <= set(hard[anchors].flatten().tolist())


def test_other_hard_negatives() -> None:
    sampler = GradedBatchSampler(KEYS, 20, hard=hard_negatives())
    before = list(sampler)
    other = (hard_negatives() + 40) % N
    sampler.set_hard(other)
    after = list(sampler)
    assert [batch[:10] for batch in after] == [batch[:10] for batch in before]
    for batch in after:
        own, of_hard, _ = parts(sampler, batch)
        assert set(of_hard) <= set(other[own].flatten().tolist())


def test_several_grains_meet() -> None:
    """More levels in a batch than in a random one."""
    ids = torch.arange(4000)
    keys = torch.stack([ids // 1000, ids // 50, ids // 2], dim=1)
    pairs = []
    for shares in (SHARES["anchors"], {"hard_share": 0, "neighbour_share": 0.5}):
        batch = keys[next(iter(GradedBatchSampler(keys, 64, **shares)))]
        level = GrainKeys(batch, batch).block(0, 64, 64)
        pairs.append([int((level == k).sum()) - (64 if k == 3 else 0) for k in (1, 2, 3)])
    random, graded = pairs
    assert random[2] <= 2 < 16 <= graded[2]
    assert graded[1] >= random[1] + 16


# What there is not enough of.


def test_nothing_to_mix_in() -> None:
    """No hard negatives and no relatives: random items, none twice."""
    sampler = GradedBatchSampler(ITEMS[:, None], 30)
    assert (sampler.num_anchors, sampler.num_hard, sampler.num_neighbours) == (14, 8, 8)
    seen = set()
    for batch in sampler:
        assert len(set(batch)) == 30
        seen |= set(batch[14:])
    assert len(seen) > N / 3


def test_all_items_in_each_batch() -> None:
    for batch in GradedBatchSampler(KEYS, N, hard=hard_negatives()):
        assert sorted(batch) == list(range(N))


def test_unknown_keys_are_no_relatives() -> None:
    """Items 0..9 share both keys, 10..19 the first one alone, 20.. none."""
    keys = torch.full((60, 2), -1)
    keys[:10], keys[10:20, 0] = 0, 0
    sampler = GradedBatchSampler(keys, 4, hard_share=0, neighbour_share=0.5)
    related = 0
    for epoch in range(20):
        sampler.set_epoch(epoch)
        for first, second, *others in sampler:
            if first < 10:
                assert others[0] < 10 or second < 10
            known = [x for x in (first, second) if x < 20]
            if len(known) == 2:
                assert all(x < 20 for x in others)
                related += 1
    assert related > 10


# Seeds.


def test_the_seed_and_the_epoch_alone_decide() -> None:
    def batches(epoch: int, seed: int = 0) -> list[list[int]]:
        sampler = GradedBatchSampler(KEYS, 20, hard=hard_negatives(), seed=seed)
        sampler.set_epoch(epoch)
        torch.manual_seed(epoch)
        return list(sampler)

    sampler = GradedBatchSampler(KEYS, 20, hard=hard_negatives())
    assert batches(0) == list(sampler) == list(sampler)
    assert batches(3) == batches(3)
    different = [batches(0), batches(1), batches(0, seed=1), batches(1, seed=1)]
    assert all(a != b for i, a in enumerate(different) for b in different[:i])


@pytest.mark.parametrize("workers", [0, 1])
def test_in_a_data_loader(workers: int) -> None:
    sampler = GradedBatchSampler(KEYS, 60, hard=hard_negatives())
    data = torch.utils.data.TensorDataset(ITEMS)
    loader = DataLoader(data, batch_sampler=sampler, num_workers=workers)
    assert len(loader) == len(sampler)
    assert [items.tolist() for (items,) in loader] == list(sampler)


# Mining.

Q = torch.randint(-2, 3, (37, 4), generator=torch.Generator().manual_seed(1)).float()
C = torch.randint(-2, 3, (53, 4), generator=torch.Generator().manual_seed(2)).float()


SIMILARITY = (Q @ C.T).tolist()  # exact


def slow_mine(levels: Tensor, k: int, below: int) -> Tensor:
    out = torch.full((len(Q), k), -1)
    for i, (row, similarity) in enumerate(zip(levels.tolist(), SIMILARITY, strict=True)):
        allowed = [j for j, y in enumerate(row) if 0 <= y < below]
        best = sorted(allowed, key=lambda j: (-similarity[j], j))[:k]
        out[i, : len(best)] = torch.tensor(best, dtype=torch.int64)
    return out


@pytest.mark.parametrize(
    ("k", "workspace_mb"), [(1, None), (3, 0.01), (20, None), (60, None)], ids=str
)
@pytest.mark.parametrize("name", sources(2, 2))
def test_mined_equals_a_slow_loop(name: str, k: int, workspace_mb: float | None) -> None:
    source = sources(len(Q), len(C))[name]
    levels = source.block(0, len(Q), len(C), Q.device)
    for below in sorted({1, source.max_level, source.max_level + 1}):
        mined = mine_hard_negatives(
            Q, C, source, k, below=below, normalize=False, workspace_mb=workspace_mb
        )
        assert mined.dtype == torch.int64
        assert torch.equal(mined, slow_mine(levels, k, below))


def test_rows_with_few_or_no_negatives() -> None:
    levels = torch.full((len(Q), len(C)), 2)
    levels[1, 50], levels[2], levels[3] = 1, -1, 0
    mined = mine_hard_negatives(Q, C, DenseLevels(levels), 2, below=2, normalize=False)
    assert torch.equal(mined, slow_mine(levels, 2, 2))
    assert mined[:3].tolist() == [[-1, -1], [50, -1], [-1, -1]]


def test_cosine_is_the_default() -> None:
    q = torch.tensor([[1.0, 0.0]])
    c = torch.tensor([[9.0, 9.0], [0.1, 0.0], [1.0, 0.1]])
    levels = DenseLevels(torch.zeros(1, 3, dtype=torch.int8), 1)
    assert mine_hard_negatives(q, c, levels, 3, below=1).tolist() == [[1, 2, 0]]
    dot = mine_hard_negatives(q, c, levels, 3, below=1, normalize=False)
    assert dot.tolist() == [[0, 2, 1]]


def test_the_diagonal() -> None:
    mined = mine_hard_negatives(C, C, None, 4, below=1)
    assert (mined != torch.arange(len(C))[:, None]).all()
    assert (mined >= 0).all()


def test_the_matrix_is_never_stored() -> None:
    """Not even its levels: memory is that of the workspace."""
    n = 800
    keys = torch.arange(n)[:, None] // torch.tensor([50, 5])
    q, c = torch.randn(2, n, 8, generator=torch.Generator().manual_seed(0))
    levels = GrainKeys(keys, keys)
    profile = profiled(lambda: mine_hard_negatives(q, c, levels, 3, below=1, workspace_mb=0.25))
    assert profile.peak <= 1.5 * 0.25 * 2**20 < n * n


def test_mined_negatives_fill_the_batches() -> None:
    generator = torch.Generator().manual_seed(4)
    q, c = torch.randn(2, N, 8, generator=generator)
    hard = mine_hard_negatives(q, c, GrainKeys(KEYS, KEYS), 8, below=2)
    sampler = GradedBatchSampler(KEYS, 40, hard=hard)
    for batch in sampler:
        own, of_hard, _ = parts(sampler, batch)
        assert len(of_hard) == 10
        assert (LEVELS[own][:, of_hard] < 2).any(dim=0).all()


# Errors.

SAMPLER: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "keys are a list": ({"keys": [[0]]}, TypeError, "keys must be a torch.Tensor, got list"),
    "floating keys": ({"keys": KEYS.float()}, TypeError, "keys must hold integers, got .*float32"),
    "one-dimensional": ({"keys": ITEMS}, ValueError, r"keys must have shape \[N, K\], .*\[:, None"),
    "no column": ({"keys": KEYS[:, :0]}, ValueError, r"keys must have a column .*got \(240, 0\)"),
    "a larger batch": ({"batch_size": 241}, ValueError, "batch_size must be at most N = 240.*241"),
    "no batch": ({"batch_size": 0}, ValueError, "batch_size must be 1 or more, got 0"),
    "half an item": ({"batch_size": 20.0}, TypeError, "batch_size must be an int, got float"),
    "no anchor": (
        {"hard_share": 0.5, "neighbour_share": 0.5},
        ValueError,
        "must leave an anchor of the 20 items, got 0.5 and 0.5; pass smaller",
    ),
    "a negative share": ({"hard_share": -0.1}, ValueError, "hard_share must be a share .*got -0.1"),
    "a whole share": ({"neighbour_share": 1}, ValueError, "neighbour_share must be a share.*got 1"),
    "a NaN share": ({"hard_share": math.nan}, ValueError, "hard_share must be a share .*got nan"),
    "a share as text": ({"hard_share": "0.1"}, TypeError, "hard_share must be a number, got str"),
    "a negative seed": ({"seed": -1}, ValueError, "seed must be 0 or more, got -1"),
    "hard of other items": (
        {"hard": hard_negatives()[:9]},
        ValueError,
        "hard must have N = 240 rows, one for each row of keys, got 9",
    ),
    "hard out of range": (
        {"hard": hard_negatives() + 1},
        ValueError,
        r"hard must hold rows of items, 0..239, or -1, got 0..240; mine among the items",
    ),
    "floating hard": ({"hard": hard_negatives().float()}, TypeError, "hard must hold integers"),
}
MINING: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "k of 0": ({"k": 0}, ValueError, "k must be 1 or more, got 0"),
    "half a candidate": ({"k": 1.5}, TypeError, "k must be an int, got float"),
    "below 0": ({"below": 0}, ValueError, "below must be 1 or more, got 0"),
    "below L + 2": ({"below": 4}, ValueError, r"below must lie in 1..L \+ 1 = 3, got 4"),
    "integer queries": ({"queries": Q.long()}, TypeError, "queries must be float16, .*int64"),
    "levels of another shape": (
        {"levels": DenseLevels(torch.ones(2, 2, dtype=torch.int8))},
        ValueError,
        r"levels must have shape \[N, M\] = \[37, 53\]",
    ),
    "a margin": (
        {"levels": DenseLevels(torch.ones(37, 53, dtype=torch.int8)).false_negative_margin(0.1)},
        ValueError,
        "levels must not depend on the embeddings, got a false_negative_margin; pass the",
    ),
    "a workspace of 0": ({"workspace_mb": 0}, ValueError, "workspace_mb must be positive"),
    "a NaN": ({"queries": Q * math.nan}, ValueError, "NaN"),
}


@pytest.mark.parametrize("case", SAMPLER)
def test_the_sampler_refuses(case: str) -> None:
    change, error, message = SAMPLER[case]
    given: dict[str, Any] = {"keys": KEYS, "batch_size": 20} | change
    with pytest.raises(error, match=message):
        GradedBatchSampler(**given)


@pytest.mark.parametrize("case", MINING)
def test_mining_refuses(case: str) -> None:
    change, error, message = MINING[case]
    levels = DenseLevels(torch.zeros(37, 53, dtype=torch.int8), 2)
    given: dict[str, Any] = {"queries": Q, "candidates": C, "levels": levels, "k": 2, "below": 2}
    with pytest.raises(error, match=message):
        mine_hard_negatives(**(given | change))


def test_an_epoch_is_a_number() -> None:
    with pytest.raises(ValueError, match="epoch must be 0 or more, got -1"):
        GradedBatchSampler(KEYS, 20).set_epoch(-1)


def test_a_deeper_search_finds_what_a_shallow_one_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only rows that lack some are searched again."""
    levels = torch.zeros(len(Q), len(C), dtype=torch.int8)
    order = (Q @ C.T).argsort(dim=1, descending=True, stable=True)
    levels[3, order[3, :30]] = 1
    calls = []
    real = sampler_module.search

    def counted(queries: Tensor, candidates: Tensor, k: int, **options: Any) -> Any:
        calls.append((len(queries), k))
        return real(queries, candidates, k, **options)

    monkeypatch.setattr(sampler_module, "search", counted)
    mined = mine_hard_negatives(Q, C, DenseLevels(levels), 2, below=1, normalize=False)
    assert torch.equal(mined, slow_mine(levels, 2, 1))
    assert calls == [(37, 4), (1, 16), (1, 53)]
