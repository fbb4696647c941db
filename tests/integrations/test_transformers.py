"""The adapter for transformers: the loss function, and the trainer with one tower and with two."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import grainrank
from grainrank import GrainKeys

from .conftest import GRAINS, TOPICS

transformers = pytest.importorskip("transformers", reason="needs pip install '.[hf]'")
pytest.importorskip("accelerate", reason="needs pip install '.[hf]'")

from grainrank.integrations.transformers import (  # noqa: E402
    GradedLossFunction,
    GradedTrainer,
    PairCollator,
)

PATHS = torch.tensor(GRAINS)
MULTI_LEVEL = {"temperature": 0.1}


def clip(dropout: float = 0.0) -> Any:
    """A CLIPModel with random weights."""
    torch.manual_seed(0)
    towers = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "attention_dropout": dropout,
    }
    return transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={
                **towers, "vocab_size": 40, "max_position_embeddings": 8,
                "eos_token_id": 2, "bos_token_id": 1, "pad_token_id": 0,
            },
            vision_config={**towers, "image_size": 8, "patch_size": 4},
            projection_dim=16,
        )
    )  # fmt: skip


class Pairs(torch.utils.data.Dataset):
    """Texts and pictures of the topics: a pair's tokens and pixels follow its path, with noise."""

    def __init__(self, count: int = 48) -> None:
        generator = torch.Generator().manual_seed(1)
        looks = torch.randn(8, 3, 8, 8, generator=generator)
        noise = 0.3 * torch.randn(count, 3, 8, 8, generator=generator)
        self.pixels = looks[torch.arange(count) % 8] + noise

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> dict[str, Any]:
        kind, type_, item = GRAINS[i % 8]
        tokens = [1, 10 + kind, 20 + type_, 30 + item, 2]
        return {
            "input_ids": torch.tensor(tokens),
            "attention_mask": torch.ones(5, dtype=torch.int64),
            "pixel_values": self.pixels[i],
            "labels": torch.tensor(GRAINS[i % 8]),
        }


def arguments(folder: Path, **more: Any) -> Any:
    return transformers.TrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 50,
            "per_device_train_batch_size": 16,
            "learning_rate": 5e-3,
            "logging_steps": 10,
            "save_strategy": "no",
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "seed": 0,
            "lr_scheduler_type": "constant",
            **more,
        }
    )


def batch(rows: range = range(8)) -> dict[str, Tensor]:
    data = Pairs()
    return {key: torch.stack([data[i][key] for i in rows]) for key in data[0]}


def gradients(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def texts_of_topics(copies: int) -> list[dict[str, Any]]:
    return [
        {
            "query": f"{word} {'abcdefghij'[i]}",
            "candidate": f"the {word}",
            "negative": f"no {kind}",
            "labels": list(path),
        }
        for i in range(copies)
        for (_, kind, word), path in zip(TOPICS, GRAINS, strict=True)
    ]


@pytest.mark.parametrize("size", [None, 3, 8])
def test_gradients_of_two_towers_are_the_plain_loss_s(tmp_path, size):
    """The model's own scale is learned, and the cached gradients are the plain ones."""
    model = clip()
    trainer = GradedTrainer(
        model,
        arguments(tmp_path),
        loss=grainrank.MultiLevelRankingLoss(direction="symmetric"),
        mini_batch_size=size,
    )
    total = trainer.compute_loss(model, batch())
    total.backward()
    found = gradients(model)
    model.zero_grad()
    given = batch()
    del given["labels"]
    out = model(**given)
    expected = grainrank.multi_level_ranking_loss(
        out.text_embeds,
        out.image_embeds,
        GrainKeys(PATHS, PATHS),
        logit_scale=model.logit_scale.exp(),
        direction="symmetric",
    )
    expected.backward()
    torch.testing.assert_close(total, expected)
    torch.testing.assert_close(found, gradients(model), rtol=1e-4, atol=1e-6)
    assert float(found["logit_scale"].abs()) > 0


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_gradients_of_one_tower_are_the_plain_loss_s(bert, tmp_path, pooling):
    model = transformers.BertModel.from_pretrained(bert, hidden_dropout_prob=0.0)
    model.eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    columns = ("query", "candidate", "negative")
    given = PairCollator(tokenizer, columns)(texts_of_topics(1))
    results = []
    for size in (None, 3):
        model.zero_grad()
        trainer = GradedTrainer(
            model,
            arguments(tmp_path, remove_unused_columns=False),
            loss=grainrank.MultiLevelRankingLoss(**MULTI_LEVEL),
            columns=columns,
            pooling=pooling,
            mini_batch_size=size,
        )
        total = trainer.compute_loss(model, given)
        total.backward()
        results.append((total.detach(), gradients(model)))

    model.zero_grad()
    embedded = []
    for column in columns:
        texts = [row[column] for row in texts_of_topics(1)]
        one = []
        for text in texts:  # without any padding
            tokens = tokenizer(text, return_tensors="pt")
            hidden = model(**tokens).last_hidden_state[0]
            one.append({"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1]}[pooling])
        embedded.append(torch.stack(one))
    keys = torch.cat([PATHS, torch.full((8, 3), -1)])
    expected = grainrank.multi_level_ranking_loss(
        embedded[0], torch.cat(embedded[1:]), GrainKeys(PATHS, keys), **MULTI_LEVEL
    )
    expected.backward()
    for total, found in results:
        torch.testing.assert_close(total, expected.detach(), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found, gradients(model), rtol=1e-3, atol=1e-6)


def test_cached_repeats_the_dropout(tmp_path):
    """One mini-batch of the whole batch sees the random numbers that the plain step sees."""
    model = clip(dropout=0.5).train()
    found = []
    for size in (None, 8):
        model.zero_grad()
        loss = grainrank.MultiLevelRankingLoss(**MULTI_LEVEL)
        trainer = GradedTrainer(model, arguments(tmp_path), loss=loss, mini_batch_size=size)
        torch.manual_seed(5)
        trainer.compute_loss(model, batch()).backward()
        found.append(gradients(model))
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)
    model.eval()
    model.zero_grad()
    trainer.compute_loss(model, batch()).backward()
    with pytest.raises(AssertionError):  # the dropout does something
        torch.testing.assert_close(found[0], gradients(model), rtol=1e-2, atol=1e-4)


def step(trainer: Any, micro_batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The gradients after the training steps of an accumulated step, as `Trainer` makes them."""
    model = trainer.model
    model.zero_grad()
    trainer.current_gradient_accumulation_steps = len(micro_batches)
    items = trainer._get_num_items_in_batch(micro_batches, torch.device("cpu"))
    for part in micro_batches:
        trainer.training_step(model, dict(part), items)
    return gradients(model)


@pytest.mark.parametrize("way", ["loss function", "trainer", "cached"])
def test_accumulated_gradients_are_the_mean_of_the_micro_batches(tmp_path, way):
    model = clip()
    loss = grainrank.MultiLevelRankingLoss(**MULTI_LEVEL, direction="symmetric")
    args = arguments(tmp_path, gradient_accumulation_steps=2)
    if way == "loss function":
        trainer = transformers.Trainer(model, args, compute_loss_func=GradedLossFunction(loss))
    else:
        size = 4 if way == "cached" else None
        trainer = GradedTrainer(model, args, loss=loss, mini_batch_size=size)
    parts = [batch(range(8)), batch(range(8, 16))]
    found = step(trainer, parts)
    model.zero_grad()
    for part in parts:
        given = {key: value for key, value in part.items() if key != "labels"}
        out = model(**given)
        levels = GrainKeys(part["labels"], part["labels"])
        (loss(out.text_embeds, out.image_embeds, levels) / 2).backward()
    # The model's scale is not used here; its logits take no part in the loss.
    torch.testing.assert_close(found, gradients(model), rtol=1e-4, atol=1e-6)


def test_fifty_steps_of_clip_then_evaluate_save_and_load(tmp_path):
    model = clip()
    trainer = GradedTrainer(
        model,
        arguments(tmp_path, gradient_accumulation_steps=2, per_device_train_batch_size=8),
        train_dataset=Pairs(),
        eval_dataset=Pairs(16),
        loss=grainrank.MultiLevelRankingLoss(direction="symmetric"),
        mini_batch_size=4,
        compute_metrics=lambda p: {"width": p.predictions[0].shape[1]},
    )
    before = trainer.evaluate()["eval_loss"]
    scale = model.logit_scale.item()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < 0.5 * before
    assert after["eval_width"] == 16
    assert model.logit_scale.item() != scale
    trainer.save_model(str(tmp_path / "saved"))
    loaded = transformers.CLIPModel.from_pretrained(tmp_path / "saved")
    given = {key: value for key, value in batch().items() if key != "labels"}
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(**given).text_embeds, model(**given).text_embeds)


def test_fifty_steps_of_clip_with_the_loss_function(tmp_path):
    model = clip()
    loss = grainrank.MultiLevelRankingLoss(**MULTI_LEVEL, direction="symmetric")
    trainer = transformers.Trainer(
        model,
        arguments(tmp_path, remove_unused_columns=False),
        train_dataset=Pairs(),
        compute_loss_func=GradedLossFunction(loss),
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.5 * losses[0]


def test_fifty_steps_of_one_tower_with_a_learned_temperature(bert, tmp_path):
    model = transformers.BertModel.from_pretrained(bert)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    temperature = torch.nn.Parameter(torch.tensor(0.1))
    trainer = GradedTrainer(
        model,
        arguments(tmp_path, remove_unused_columns=False),
        train_dataset=texts_of_topics(6),
        data_collator=PairCollator(tokenizer, max_length=16),
        loss=grainrank.MultiLevelRankingLoss(temperature=temperature),
        columns=("query", "candidate"),
        mini_batch_size=8,
    )
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.6 * losses[0]
    assert float(temperature.detach()) != pytest.approx(0.1)
    found = trainer.predict(texts_of_topics(1))
    assert found.predictions[0].shape == found.predictions[1].shape == (8, 16)
    np.testing.assert_array_equal(found.label_ids, PATHS.numpy())


def test_errors_name_the_mend(bert, tmp_path):
    args = arguments(tmp_path)
    fixed = grainrank.MultiLevelRankingLoss(temperature=0.1)
    bert_model = transformers.BertModel.from_pretrained(bert)
    with pytest.raises(TypeError, match="loss must be a loss module of grainrank"):
        GradedTrainer(clip(), args, loss=torch.nn.MSELoss())
    with pytest.raises(ValueError, match="remove_unused_columns must be False"):
        GradedTrainer(bert_model, args, loss=fixed, columns=("query", "candidate"))
    with pytest.raises(ValueError, match="the model has no logit_scale"):
        GradedTrainer(bert_model, args, loss=grainrank.MultiLevelRankingLoss())
    with pytest.raises(ValueError, match="columns must be the names of two columns"):
        GradedTrainer(clip(), args, loss=fixed, columns="query")
    tokens = {"input_ids": torch.ones(2, 3, dtype=torch.int64)}
    with pytest.raises(ValueError, match="say columns="):
        GradedTrainer(bert_model, args, loss=fixed).compute_loss(bert_model, tokens)
    cached = GradedTrainer(clip(), args, loss=fixed, mini_batch_size=4)
    with pytest.raises(ValueError, match="must have a row for each of the 8 pairs"):
        cached.compute_loss(cached.model, {**batch(), "grid": torch.ones(3)})
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        GradedLossFunction(fixed)(SimpleNamespace(), None)
    with pytest.raises(ValueError, match="use GradedTrainer"):
        GradedLossFunction(grainrank.MultiLevelRankingLoss())
    with pytest.raises(ValueError, match="must return text_embeds and image_embeds"):
        GradedLossFunction(fixed)(SimpleNamespace(), PATHS)
    tokenizer = transformers.AutoTokenizer.from_pretrained(bert)
    with pytest.raises(KeyError, match="text column 'query'"):
        PairCollator(tokenizer)([{"text": "a"}])
    with pytest.raises(ValueError, match="fill up unknown grains with -1"):
        PairCollator(tokenizer, ("a",))([{"a": "x", "labels": [0]}, {"a": "y", "labels": [0, 1]}])
