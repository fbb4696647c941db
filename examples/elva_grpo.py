"""ELVA end to end: a supervised start, then reinforcement learning with rewards by rules (GRPO).

A step of the second phase draws G rollouts around each query's embedding, judges by rules how each
of them ranks the batch's candidates, and makes the better ones more likely than the others of the
same query, without leaving the supervised start too far behind.

Run: python examples/elva_grpo.py                medical synonyms to codes; needs the extra [text]
     python examples/elva_grpo.py --data emoji   names of emoji in a language never trained on
     python examples/elva_grpo.py --data pictures   pictures of emoji in a style never trained on
     python examples/elva_grpo.py --quick        a short run on a part of the emoji
"""

from __future__ import annotations

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from grainrank import GrainKeys, metrics, multi_level_ranking_loss, positive_ranks, rl
from grainrank.data import emoji, icd10
from grainrank.demo.encoder import make_encoder
from grainrank.demo.text import Bags, hashed_ngrams

KL_WEIGHT = 0.1


Inputs = Bags | Tensor  # texts, or pictures [n, 3, 32, 32]


class TwoTower(nn.Module):
    """Small encoders of random weights: n-grams of texts, three convolutions over pictures."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.texts = make_encoder(0)
        self.pictures = nn.Sequential(
            *(nn.Conv2d(3, 32, 3, 2, 1), nn.GELU(), nn.Conv2d(32, 64, 3, 2, 1), nn.GELU()),
            *(nn.Conv2d(64, 128, 3, 2, 1), nn.GELU(), nn.Flatten(), nn.Linear(128 * 16, 128)),
        )

    def forward(self, inputs: Inputs) -> Tensor:
        encoder = self.pictures if isinstance(inputs, Tensor) else self.texts
        return torch.as_tensor(encoder(inputs))


class Pairs(NamedTuple):
    queries: Inputs
    targets: Tensor  # rows of the candidates, int64 [N]


class Data(NamedTuple):
    train: Pairs
    test: Pairs
    candidates: Bags
    grains: Tensor  # int64 [M, K], coarse to fine


def select(inputs: Inputs, rows: Tensor) -> Inputs:
    return inputs[rows] if isinstance(inputs, Tensor) else inputs.select(rows)


def pictures(styles: Sequence[str]) -> Pairs:
    """All emoji in each style, on white."""
    pixels = torch.cat([torch.from_numpy(emoji.pictures(style).copy()) for style in styles]).float()
    alpha = pixels[..., 3:] / 255
    values = (pixels[..., :3] / 255 * alpha + 1 - alpha).permute(0, 3, 1, 2) - 0.5
    items = len(values) // len(styles)
    return Pairs(values.contiguous(), torch.arange(items).repeat(len(styles)))


def load(name: str, quick: bool) -> Data:
    if name == "icd10":
        codes = icd10.load()
        known, new = (codes.queries[key] for key in ("train", "test_unseen"))
        new = new.without_near_duplicates()
        sides = [Pairs(hashed_ngrams(side.texts), side.targets) for side in (known, new)]
        return Data(sides[0], sides[1], hashed_ngrams(codes.candidates), codes.grains)
    items = emoji.load()
    if name == "pictures":
        names = hashed_ngrams(items.names)
        return Data(pictures(["noto", "fluent"]), pictures(["twemoji"]), names, items.grains)
    languages = ("es", "it") if quick else ("de", "fr", "es", "it", "nl", "sv", "pl")
    texts = [text for language in languages for text in items.translations[language]]
    train = Pairs(hashed_ngrams(texts), torch.arange(len(items)).repeat(len(languages)))
    seen = {*texts, *items.names}
    unseen = {i: x for i, x in enumerate(items.translations["pt"]) if x not in seen}
    test = Pairs(hashed_ngrams([*unseen.values()]), torch.tensor([*unseen]))
    return Data(train, test, hashed_ngrams(items.names), items.grains)


def evaluate(encoder: TwoTower, data: Data) -> dict[str, float]:
    """Means over the test queries; all candidates are ranked."""
    with torch.inference_mode():
        levels = GrainKeys(data.grains[data.test.targets], data.grains)
        ranks = positive_ranks(encoder(data.test.queries), encoder(data.candidates), levels)
    return {
        "recall@1": metrics.recall_at(ranks, 1, data.grains.shape[1]).mean().item(),
        "nDCG@10": metrics.ndcg_at(ranks, 10, gain="linear").mean().item(),
        "violations": metrics.level_violation_rate(ranks).mean().item(),
    }


def train(
    encoder: TwoTower,
    data: Data,
    batches: Sequence[Sequence[int]],
    learning_rate: float,
    loss: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> TwoTower:
    """`loss` of the queries' and candidates' embeddings, and of the batch's training pairs."""
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=learning_rate, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=len(batches)
    )
    for batch in batches:
        rows = torch.tensor(batch)
        q = encoder(select(data.train.queries, rows))
        c = encoder(data.candidates.select(data.train.targets[rows]))
        optimizer.zero_grad()
        loss(q, c, rows).backward()
        optimizer.step()
        schedule.step()
    return encoder


def batches(keys: Tensor, size: int, steps: int, hard: Tensor | None = None) -> list[list[int]]:
    """Random ones, or, with hard negatives, those in which several grains meet."""
    share = 0.0 if hard is None else 0.25
    sampler = rl.GradedBatchSampler(keys, size, hard=hard, hard_share=share, neighbour_share=share)
    found: list[list[int]] = []
    while len(found) < steps:
        sampler.set_epoch(len(found))
        found += sampler
    return found[:steps]


def run(data: Data, options: argparse.Namespace) -> dict[str, list[float]]:
    """Prints the table; returns the curves of the second phase."""
    size, steps = options.batch, options.steps
    keys = data.grains[data.train.targets]  # [N, K]

    def supervised_loss(q: Tensor, c: Tensor, rows: Tensor) -> Tensor:
        levels = GrainKeys(keys[rows], keys[rows])
        loss = multi_level_ranking_loss(q, c, levels, temperature=0.1, direction="symmetric")
        return torch.as_tensor(loss)

    random = batches(keys, size, options.start_steps)
    start = train(TwoTower(), data, random, 2e-3, supervised_loss)
    with torch.no_grad():  # q_start is the frozen reference of the KL, too
        q_start, c_start = normalize(start(data.train.queries)), normalize(start(data.candidates))
    c_start, levels = c_start[data.train.targets], GrainKeys(keys, keys)
    hard = rl.mine_hard_negatives(q_start, c_start, levels, 16, below=keys.shape[1])
    graded = batches(keys, size, steps, hard)

    # Both explore as far: a mean cosine of about 0.95 to the embedding.
    features = q_start.shape[1]
    policy: rl.GaussianPolicy | rl.VonMisesFisherPolicy = rl.GaussianPolicy(0.33 / features**0.5)
    if options.policy == "vmf":
        policy = rl.VonMisesFisherPolicy(0.95 * (features - 0.95**2) / (1 - 0.95**2))
    generator = torch.Generator().manual_seed(0)
    curves: dict[str, list[float]] = {"ranking reward": [], "margin reward": [], "KL": []}

    def reinforcement(q: Tensor, c: Tensor, rows: Tensor) -> Tensor:
        means = normalize(q)  # [N, D]
        drawn = policy.sample(means, options.rollouts, generator)  # [G, N, D]
        of_batch = GrainKeys(keys[rows], keys[rows])
        ranking = rl.ranking_reward(drawn, c.detach(), of_batch, average="micro")  # [G, N]
        margin = rl.margin_reward(drawn, c.detach(), of_batch, target=0.2, of="means")
        loss, stats = rl.grpo_loss(
            policy.log_prob(drawn, means),
            None,
            rl.group_advantages(rl.weighted_reward(ranking, margin, weights=[2, 1])),
            kl=policy.kl(means, q_start[rows]),
            kl_weight=KL_WEIGHT,
            return_stats=True,
        )
        for name, value in zip(curves, (ranking.mean(), margin.mean(), stats.kl), strict=True):
            curves[name].append(float(value))
        if options.supervised > 0:
            loss = loss + options.supervised * supervised_loss(q, c, rows)
        return torch.as_tensor(loss)

    more = train(copy.deepcopy(start), data, graded, 3e-4, supervised_loss)
    after = train(copy.deepcopy(start), data, graded, 3e-4, reinforcement)
    rows = {"supervised start": start, "more supervision": more, "reinforcement": after}
    print(f"{'':18}recall@1  nDCG@10  violations   (test, %)")
    for name, encoder in rows.items():
        value = evaluate(encoder, data)
        print(f"{name:18}" + "".join(f"{100 * x:8.1f} " for x in value.values()))
    return curves


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", choices=("icd10", "emoji", "pictures"), default="icd10")
    parser.add_argument("--policy", choices=("vmf", "gaussian"), default="vmf")
    parser.add_argument("--start-steps", type=int, default=170)
    parser.add_argument("--steps", type=int, default=40, help="after the supervised start")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--rollouts", type=int, default=16, help="of each query")
    parser.add_argument("--supervised", type=float, default=0.0, help="weight beside the rewards")
    parser.add_argument("--quick", action="store_true", help="a short run on a part of the emoji")
    parser.add_argument("--curves", type=Path, help="a .json, or a picture (extra [plot])")
    options = parser.parse_args(arguments)
    if options.quick:
        options.start_steps, options.steps, options.batch, options.rollouts = 12, 3, 128, 4
        options.data = "pictures" if options.data == "pictures" else "emoji"
    curves = run(load(options.data, options.quick), options)
    if options.curves is None:
        return
    if options.curves.suffix == ".json":
        options.curves.write_text(json.dumps(curves) + "\n", encoding="utf-8")
        return
    import matplotlib.pyplot as plt  # of the extra [plot]

    figure, axes = plt.subplots(1, len(curves), figsize=(9, 2.5), layout="constrained")
    for axis, (name, values) in zip(axes, curves.items(), strict=True):
        axis.plot(values)
        axis.set(title=name, xlabel="step")
    figure.savefig(options.curves)


if __name__ == "__main__":
    main()
