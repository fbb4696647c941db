"""The adapter for sentence-transformers: its trainer, model card, sampler and evaluator."""

from __future__ import annotations

import csv
import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import grainrank
from grainrank import DenseLevels, GrainKeys
from grainrank.evaluation import evaluate_embeddings

from .conftest import GRAINS, TOPICS

st = pytest.importorskip("sentence_transformers", reason="needs pip install '.[st]'")
datasets = pytest.importorskip("datasets", reason="needs pip install '.[st]'")

from grainrank.integrations.sentence_transformers import (  # noqa: E402
    CachedGradedLoss,
    CachedMultiLevelRankingLoss,
    GradedBatchSampler,
    GradedLoss,
    GradedRetrievalEvaluator,
    MultiLevelRankingLoss,
)


@pytest.fixture
def model(bert: Path) -> Any:
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    return st.SentenceTransformer(modules=[Transformer(str(bert)), Pooling(16)], device="cpu")


def columns(model: Any, count: int = 2) -> list[dict[str, Tensor]]:
    """Queries, positives, hard negatives, ..."""
    texts = [
        [f"{word} {number}" for number, (_, _, word) in enumerate(TOPICS)],
        [word for _, _, word in TOPICS],
        [f"no {kind}" for _, kind, _ in TOPICS],
    ]
    return [model.preprocess(text) for text in texts[:count]]


def gradients(loss: torch.nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in loss.parameters() if p.grad is not None]


def of(loss: torch.nn.Module, features: list[dict[str, Tensor]], labels: Tensor | None) -> Any:
    """Loss and gradients, with the same dropout each time."""
    loss.zero_grad()
    torch.manual_seed(3)
    total = loss(features, labels)
    total.backward()
    return total.detach(), gradients(loss)


PATHS = torch.tensor(GRAINS)
GRADES = torch.tensor([[2, 1], [2, 0], [1, -1], [2, 1], [1, 0], [2, 0], [2, 1], [1, 1]])
NEGATIVE_PATHS = torch.cat([PATHS, PATHS.roll(1, 0) // 2], dim=1)  # positive's and negative's


def dense_grades() -> DenseLevels:
    table = torch.zeros(8, 16, dtype=torch.int8)
    own = torch.arange(8)
    table[own, own], table[own, own + 8] = GRADES[:, 0].to(torch.int8), GRADES[:, 1].to(torch.int8)
    return DenseLevels(table)


@pytest.mark.parametrize(
    ("options", "labels", "levels"),
    [
        ({}, PATHS, GrainKeys(PATHS, torch.cat([PATHS, torch.full((8, 3), -1)]))),
        (
            {"num_grains": 3},
            NEGATIVE_PATHS,
            GrainKeys(PATHS, torch.cat([PATHS, PATHS.roll(1, 0) // 2])),
        ),
        ({"label": "grades", "max_level": 2}, GRADES, dense_grades()),
        ({"label": None}, None, None),
    ],
    ids=["grains", "grains-of-negatives", "grades", "no-labels"],
)
def test_loss_and_gradients_are_those_of_the_plain_loss(model, options, labels, levels):
    """Also for the cached loss, and with dropout: both see the same random numbers."""
    model.eval()
    plain = MultiLevelRankingLoss(model, temperature=0.1, **options)
    total, found = of(plain, columns(model, 3), labels)
    plain.zero_grad()
    q, *c = (model(x)["sentence_embedding"] for x in columns(model, 3))
    expected = grainrank.multi_level_ranking_loss(q, torch.cat(c), levels, temperature=0.1)
    expected.backward()
    torch.testing.assert_close(total, expected.detach())
    torch.testing.assert_close(found, gradients(plain))
    assert sum(float(g.norm()) for g in found) > 0

    for sizes in ({"mini_batch_size": 3}, {"mini_batch_num_tokens": 40}):
        cached = CachedMultiLevelRankingLoss(model, temperature=0.1, **sizes, **options)
        total, again = of(cached, columns(model, 3), labels)
        torch.testing.assert_close(total, expected.detach())
        torch.testing.assert_close(again, found, rtol=1e-4, atol=1e-6)


def test_without_labels_it_is_multiple_negatives_ranking(model):
    model.eval()
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    theirs = MultipleNegativesRankingLoss(model, scale=20.0)
    total, found = of(theirs, columns(model, 3), None)
    for ours in (MultiLevelRankingLoss(model, label=None), GradedLoss(
        model, grainrank.InfoNCELoss(temperature=0.05), label=None
    )):  # fmt: skip
        own, gradient = of(ours, columns(model, 3), None)
        torch.testing.assert_close(own, total)
        torch.testing.assert_close(gradient, found, rtol=1e-4, atol=1e-6)


def test_cached_equals_uncached_with_dropout_a_learned_temperature_and_accumulation(model):
    """One mini-batch: the random numbers are the same. The upstream gradient reaches the scale."""
    model.train()
    temperature = torch.nn.Parameter(torch.tensor(0.1))
    loss = grainrank.CLIPLoss(temperature=temperature, matryoshka_dims=(8, 16))
    results = []
    for make in (GradedLoss, functools.partial(CachedGradedLoss, mini_batch_size=8)):
        wrapped = make(model, loss)
        wrapped.zero_grad()
        for seed in (0, 1):
            torch.manual_seed(seed)
            (wrapped(columns(model), PATHS) / 2).backward()
        results.append(gradients(wrapped))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)
    assert temperature.grad is not None
    assert float(temperature.grad.abs()) > 0


def test_cached_loss_under_no_grad_is_the_plain_one(model):
    model.eval()
    with torch.no_grad():
        plain = MultiLevelRankingLoss(model)(columns(model), PATHS)
        cached = CachedMultiLevelRankingLoss(model, mini_batch_size=3)(columns(model), PATHS)
    torch.testing.assert_close(plain, cached)
    assert not cached.requires_grad


def rows(copies: int) -> Any:
    """The topics several times, each with a word of its own."""
    return datasets.Dataset.from_dict(
        {
            "anchor": [f"{w} {'abcdefghij'[i]}" for i in range(copies) for _, _, w in TOPICS],
            "positive": [f"the {w}" for _ in range(copies) for _, _, w in TOPICS],
            "label": [list(path) for _ in range(copies) for path in GRAINS],
        }
    )


@pytest.mark.parametrize("make", [MultiLevelRankingLoss, CachedMultiLevelRankingLoss])
def test_fifty_steps_of_the_trainer_and_the_way_through_a_folder(model, make, tmp_path, capsys):
    size = {"mini_batch_size": 8} if make is CachedMultiLevelRankingLoss else {}
    temperature = torch.nn.Parameter(torch.tensor(0.1))
    loss = make(model, temperature=temperature, direction="symmetric", **size)
    corpus = {f"d{i}": f"the {word}" for i, (_, _, word) in enumerate(TOPICS)}
    queries = {f"q{i}": f"{word} a" for i, (_, _, word) in enumerate(TOPICS)}
    evaluator = GradedRetrievalEvaluator(
        queries,
        corpus,
        GrainKeys(PATHS, PATHS),
        name="topics",
        level_names=["kind", "type", "item"],
    )
    before = evaluator(model)
    arguments = st.SentenceTransformerTrainingArguments(
        output_dir=str(tmp_path),
        max_steps=50,
        per_device_train_batch_size=16,
        learning_rate=5e-3,
        batch_sampler=functools.partial(GradedBatchSampler, neighbour_share=0.25),
        eval_strategy="steps",
        eval_steps=50,
        save_strategy="no",
        logging_steps=10,
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=0,
    )
    trainer = st.SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=rows(6), loss=loss, evaluator=evaluator
    )
    trainer.train()
    capsys.readouterr()
    history = trainer.state.log_history
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]
    after = next(x for x in history if "eval_topics_ndcg@10[linear]" in x)
    assert after["eval_topics_ndcg@10[linear]"] > before["topics_ndcg@10[linear]"] + 0.02
    assert float(temperature.detach()) != pytest.approx(0.1)

    model.save_pretrained(str(tmp_path / "saved"))
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert make.__name__ in card
    assert "2606.20280" in card
    assert '"label": "grains"' in card
    assert "topics" in card
    loaded = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    texts = list(queries.values())
    torch.testing.assert_close(
        torch.from_numpy(loaded.encode(texts)), torch.from_numpy(model.encode(texts))
    )


def test_sampler_batches_mix_grains_and_cover_all_rows():
    data = rows(6)
    sampler = GradedBatchSampler(data, 16, False, ["label"], seed=2, neighbour_share=0.5)
    batches = list(sampler)
    assert len(batches) == len(sampler) == 6
    assert sorted({row for batch in batches for row in batch}) == list(range(48))
    again = GradedBatchSampler(data, 16, False, ["label"], seed=2, neighbour_share=0.5)
    assert list(again) == batches
    again.set_epoch(1)
    assert list(again) != batches
    few = GradedBatchSampler(data.select(range(5)), 16, False, ["label"])
    assert all(len(set(batch)) == len(batch) <= 5 for batch in few)


def test_evaluator_equals_evaluate_embeddings_and_writes_a_line_each_time(model, tmp_path):
    model.eval()
    queries = {i: f"{word} x" for i, (_, _, word) in enumerate(TOPICS)}
    corpus = {f"d{i}": word for i, (_, _, word) in enumerate(TOPICS)}
    qrels = {0: {"d0": 2, "d1": 1}, 1: {"d1": 2}, 2: {"d2": 1, "d7": -1}, 5: {"d0": 0}}
    evaluator = GradedRetrievalEvaluator(queries, corpus, qrels, ks=(1, 3), ndcg_k=5, gain="exp2")
    found = evaluator(model, output_path=str(tmp_path), epoch=1, steps=7)
    table = torch.zeros(8, 8, dtype=torch.int8)
    for i, grades in qrels.items():
        for name, grade in grades.items():
            table[i, int(name[1])] = grade
    with torch.no_grad():
        q, c = (torch.from_numpy(model.encode(list(texts.values()))) for texts in (queries, corpus))
    report = evaluate_embeddings(q, c, DenseLevels(table), ks=(1, 3), ndcg_k=5, gain="exp2")
    assert found["ndcg@5[exp2]"] == report.ndcg
    assert evaluator.primary_metric == "ndcg@5[exp2]"
    assert found["level_2_recall@3"] == report.levels[1].recall[3]
    assert all(math.isfinite(value) for value in found.values())
    evaluator(model, output_path=str(tmp_path), epoch=2, steps=8)
    with (tmp_path / evaluator.csv_file).open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["epoch"] for line in lines] == ["1", "2"]
    assert float(lines[1]["ndcg@5[exp2]"]) == report.ndcg


def test_a_static_embedding_has_no_mini_batches():
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    tokenizer = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    static = StaticEmbedding(tokenizer, embedding_dim=4)
    model = st.SentenceTransformer(modules=[static], device="cpu")
    assert MultiLevelRankingLoss(model, label=None)
    with pytest.raises(ValueError, match="use the loss without Cached"):
        CachedMultiLevelRankingLoss(model, label=None)


def test_errors_name_the_mend(model):
    with pytest.raises(TypeError, match="loss must be a loss module of grainrank"):
        GradedLoss(model, torch.nn.MSELoss())
    with pytest.raises(ValueError, match='max_level must be given for label="grades"'):
        MultiLevelRankingLoss(model, label="grades")
    with pytest.raises(ValueError, match="add a label column to the data set, or use label=None"):
        MultiLevelRankingLoss(model)(columns(model), None)
    with pytest.raises(ValueError, match="two text columns or more"):
        MultiLevelRankingLoss(model)(columns(model, 1), PATHS)
    with pytest.raises(TypeError, match="labels must hold integers"):
        MultiLevelRankingLoss(model)(columns(model), PATHS.float())
    with pytest.raises(ValueError, match="2 columns of candidates x 2 grains = 4 numbers"):
        MultiLevelRankingLoss(model, num_grains=2)(columns(model, 3), PATHS)
    with pytest.raises(ValueError, match="a grade for each of the 2 candidates"):
        MultiLevelRankingLoss(model, label="grades", max_level=2)(columns(model, 3), PATHS)
    with pytest.raises(ValueError, match="mini_batch_size must be"):
        CachedMultiLevelRankingLoss(model, mini_batch_size=0)
    with pytest.raises(ValueError, match="dataset must have a label column"):
        GradedBatchSampler(rows(1).remove_columns("label"), 4, True, ["label"])
    ragged = datasets.Dataset.from_dict({"label": [[0, 1], [0]]})
    with pytest.raises(ValueError, match="fill up unknown grains with -1"):
        GradedBatchSampler(ragged, 1, True, ["label"])
    with pytest.raises(ValueError, match="must not be empty"):
        GradedRetrievalEvaluator({}, {"d": "x"}, {})
