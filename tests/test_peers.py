"""Our losses against the public libraries' own: loss and gradients of the embeddings, float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peers
import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

import grainrank
from grainrank import DenseLevels, GrainKeys, LevelSource

N, D = 12, 8
CLOSE: dict[str, Any] = {"rtol": 1e-8, "atol": 1e-10}


def embeddings(count: int, n: int = N, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(n, D, generator=generator, dtype=torch.float64)
    return [
        (shared + torch.randn(n, D, generator=generator, dtype=torch.float64)).requires_grad_()
        for _ in range(count)
    ]


def agree(ours: Tensor, theirs: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, **CLOSE)
    for a, b in zip(*(torch.autograd.grad(x, inputs) for x in (ours, theirs)), strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


# sentence-transformers


@pytest.mark.parametrize("hard", [False, True], ids=["pairs", "hard negatives"])
def test_multiple_negatives_ranking(hard: bool, backend: str) -> None:
    losses = peers.sentence_transformers()
    columns = embeddings(3 if hard else 2)
    theirs = losses.MultipleNegativesRankingLoss(peers.Encoder(), scale=20.0)
    expected = theirs(peers.features(*columns), peers.LABELS)
    q, *candidates = columns
    ours = grainrank.info_nce_loss(q, torch.cat(candidates), logit_scale=20.0, backend=backend)
    agree(ours, expected, columns)


def test_multiple_negatives_symmetric(backend: str) -> None:
    losses = peers.sentence_transformers()
    q, c = embeddings(2)
    theirs = losses.MultipleNegativesRankingLoss(
        peers.Encoder(),
        scale=20.0,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )
    ours = grainrank.clip_loss(q, c, logit_scale=20.0, backend=backend)
    agree(ours, theirs(peers.features(q, c), peers.LABELS), [q, c])


@pytest.mark.parametrize("hard", [False, True], ids=["pairs", "hard negatives"])
def test_multiple_negatives_joint(hard: bool, backend: str) -> None:
    """A query's own hard negatives are no negatives of its positive: there `candidate_levels`."""
    losses = peers.sentence_transformers()
    columns = embeddings(3 if hard else 2)
    theirs = losses.MultipleNegativesRankingLoss(
        peers.Encoder(),
        scale=20.0,
        directions=("query_to_doc", "query_to_query", "doc_to_doc"),
        partition_mode="joint",
    )
    q, *candidates = columns
    c = torch.cat(candidates)
    same_query = torch.arange(len(c)) % N == torch.arange(N)[:, None]
    ours = grainrank.info_nce_loss(
        q,
        c,
        logit_scale=20.0,
        direction="joint",
        joint_blocks=("query_query", "candidate_candidate"),
        candidate_levels=DenseLevels(-same_query.long(), 1),
        backend=backend,
    )
    agree(ours, theirs(peers.features(*columns), peers.LABELS), columns)


def test_all_four_directions_differ_by_the_positive(backend: str) -> None:
    """With doc_to_query, sentence-transformers counts exp(z_ii) twice; GTE, eq. 2, and we once."""
    losses = peers.sentence_transformers()
    q, c = embeddings(2)
    theirs = losses.MultipleNegativesRankingLoss(
        peers.Encoder(),
        scale=20.0,
        directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
        partition_mode="joint",
    )(peers.features(q, c), peers.LABELS)
    ours = grainrank.info_nce_loss(
        q, c, logit_scale=20.0, direction="joint", reduction="none", backend=backend
    )
    twice = torch.log(torch.exp(ours) + 1)  # Z / exp(z_ii), and once more the positive
    agree(twice.mean(), theirs, [q, c])


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize("margin", [0.0, 0.05])
def test_gist_embed(margin: float, contrast: bool, strategy: Any, backend: str) -> None:
    losses = peers.sentence_transformers()
    q, c = embeddings(2)
    guides = tuple(x.detach().float() for x in embeddings(2, seed=1))
    theirs = losses.GISTEmbedLoss(
        peers.Encoder(),
        peers.Encoder("guide"),
        temperature=0.05,
        margin=margin,
        margin_strategy=strategy,
        contrast_anchors=contrast,
        contrast_positives=contrast,
    )
    expected = theirs(peers.features(q, c, guide=guides), peers.LABELS)
    joint: dict[str, Any] = {"direction": "joint"} if contrast else {}
    if contrast:
        joint["joint_blocks"] = ("query_query", "candidate_candidate")
    options = {"temperature": 0.05, "backend": backend, **joint}
    ours = grainrank.gist_embed_loss(
        q, c, *guides, margin=margin, margin_strategy=strategy, **options
    )
    agree(ours, expected, [q, c])
    assert ours != grainrank.info_nce_loss(q, c, **options), "something was filtered"


def test_matryoshka(backend: str) -> None:
    losses = peers.sentence_transformers()
    model = peers.Encoder()
    q, c = embeddings(2)
    theirs = losses.MatryoshkaLoss(
        model,
        losses.MultipleNegativesRankingLoss(model, scale=20.0),
        matryoshka_dims=[8, 3, 5],
        matryoshka_weights=[1.0, 0.5, 2.0],
    )
    ours = grainrank.info_nce_loss(
        q, c, logit_scale=20.0, matryoshka_dims=[8, 3, 5], matryoshka_weights=[1.0, 0.5, 2.0],
        backend=backend,
    )  # fmt: skip
    agree(ours, theirs(peers.features(q, c), peers.LABELS), [q, c])


def test_cosent(backend: str) -> None:
    """Theirs ranks the pairs (i, i) alone, by a score for each."""
    losses = peers.sentence_transformers()
    q, c = embeddings(2)
    scores = torch.tensor([3, 0, 1, 1, 2, 0, 3, 1, 0, 2, 2, 1])
    theirs = losses.CoSENTLoss(peers.Encoder(), scale=20.0)
    levels = torch.full((N, N), -1).diagonal_scatter(scores)
    ours = grainrank.cosent_loss(q, c, DenseLevels(levels), logit_scale=20.0, backend=backend)
    agree(ours, theirs(peers.features(q, c), scores.double()), [q, c])


# pytorch-metric-learning: embeddings against themselves, without the pairs (i, i)


def of_classes(n: int = N, classes: int = 4) -> tuple[Tensor, LevelSource]:
    label = torch.arange(n) % classes
    ids = torch.arange(n)
    return label, GrainKeys(label[:, None], label[:, None]).exclude(ids, ids)


METRIC_LEARNING: dict[str, tuple[Callable[[Any], Any], Callable[..., Any], dict[str, Any]]] = {
    "SupCon": (
        lambda losses: losses.SupConLoss(temperature=0.1),
        grainrank.sup_con_loss,
        {"temperature": 0.1},
    ),
    "Circle": (lambda losses: losses.CircleLoss(), grainrank.circle_loss, {}),
    "Circle of the paper": (
        lambda losses: losses.CircleLoss(m=0.25, gamma=256),
        grainrank.circle_loss,
        {"gamma": 256.0, "margin": 0.25},
    ),
    "MultiSimilarity": (
        lambda losses: losses.MultiSimilarityLoss(),
        grainrank.multi_similarity_loss,
        {},
    ),
}


@pytest.mark.parametrize("name", METRIC_LEARNING)
def test_metric_learning(name: str, backend: str) -> None:
    theirs, ours, options = METRIC_LEARNING[name]
    (x,) = embeddings(1)
    label, levels = of_classes()
    expected = theirs(peers.metric_learning())(x, label)
    agree(ours(x, x, levels, backend=backend, **options), expected, [x])


def test_sup_con_with_rows_without_positives(backend: str) -> None:
    """Both leave them out of the mean."""
    (x,) = embeddings(1)
    label = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 3, 4, 5, 6])
    ids = torch.arange(N)
    levels = GrainKeys(label[:, None], label[:, None]).exclude(ids, ids)
    theirs = peers.metric_learning().SupConLoss(temperature=0.1)(x, label)
    ours = grainrank.sup_con_loss(x, x, levels, temperature=0.1, backend=backend)
    agree(ours, theirs, [x])


def test_ntxent(backend: str) -> None:
    """Two views of each item; theirs takes each positive alone, so one positive in a row."""
    (x,) = embeddings(1)
    label, levels = of_classes(N, N // 2)
    theirs = peers.metric_learning().NTXentLoss(temperature=0.2)(x, label)
    ours = grainrank.info_nce_loss(x, x, levels, temperature=0.2, backend=backend)
    agree(ours, theirs, [x])


# open_clip


def test_clip(backend: str) -> None:
    losses = peers.open_clip_losses()
    q, c = embeddings(2)
    scale = torch.tensor(14.3, dtype=torch.float64, requires_grad=True)
    theirs = losses.ClipLoss()(normalize(q), normalize(c), scale)
    agree(grainrank.clip_loss(q, c, logit_scale=scale, backend=backend), theirs, [q, c, scale])


def test_siglip(backend: str) -> None:
    losses = peers.open_clip_losses()
    q, c = embeddings(2)
    scale = torch.tensor(10.0, dtype=torch.float64, requires_grad=True)
    bias = torch.tensor(-10.0, dtype=torch.float64, requires_grad=True)
    theirs = losses.SigLipLoss()(normalize(q), normalize(c), scale, bias)
    ours = grainrank.siglip_loss(q, c, logit_scale=scale, logit_bias=bias, backend=backend)
    agree(ours, theirs, [q, c, scale, bias])
