"""`grainrank evaluate --model`: tiny random models in folders, nothing is downloaded."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import offline, save_bert
from torch import Tensor

from grainrank import GrainKeys, SparseLevels
from grainrank.__main__ import main
from grainrank.data import emoji
from grainrank.evaluation import Task, built_in_task, evaluate_embeddings

transformers = pytest.importorskip("transformers", reason="transformers is missing")
sentence_transformers = pytest.importorskip(
    "sentence_transformers", reason="sentence-transformers is missing"
)

FEW = 16
QUERIES = ("a cat", "two dogs run", "", "the fast red car")
CANDIDATES = ("cat", "dogs", "red car", "a boat", "boats and more boats on a lake")
QRELS = "0 0 0 2\n1 0 1 2\n3 0 2 2\n3 0 3 1\n"
Run = Callable[..., dict[str, Any]]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No hub, and no talk of torchvision's absence."""
    with offline(monkeypatch):
        yield


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command on the texts, or on what is given, and gives its JSON."""
    files = {"query-texts": "\n".join(QUERIES), "candidate-texts": "\n".join(CANDIDATES)}
    for name, text in (files | {"qrels": QRELS}).items():
        (tmp_path / name).write_text(text + "\n" * (name != "qrels"))

    def run(model: Path, *more: object, texts: bool = True) -> dict[str, Any]:
        given = [f"--{name}={tmp_path / name}" for name in (*files, "qrels")] if texts else []
        capsys.readouterr()
        code = main(["evaluate", "--json", f"--model={model}", *given, *map(str, more)])
        out, err = capsys.readouterr()
        assert code == 0, err
        found: dict[str, Any] = json.loads(out)
        return found

    return run


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder; words are spelled letter by letter, and far apart."""
    folder = tmp_path_factory.mktemp("bert")
    save_bert(folder, spread=50, max_position_embeddings=24)
    return folder


@pytest.fixture(scope="module")
def sentence_model(bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with sentence-transformers: the largest of each feature, prompts of its own."""
    folder = tmp_path_factory.mktemp("sentence")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    tokens, pooling = Transformer(str(bert)), Pooling(16, pooling_mode="max")
    model = sentence_transformers.SentenceTransformer(
        modules=[tokens, pooling], prompts={"query": "find ", "document": ""}, device="cpu"
    )
    model.save(str(folder), create_model_card=False)
    return folder


def report_of(q: Tensor, c: Tensor) -> dict[str, Any]:
    rows = [line.split() for line in QRELS.splitlines()]
    qrels = {(int(q), int(d)): int(grade) for q, _, d, grade in rows}
    levels = SparseLevels.from_qrels(range(len(q)), range(len(c)), qrels)
    return evaluate_embeddings(q, c, levels, level_names=("grade 1", "grade 2")).to_dict()


def mean_of_each(folder: Path, texts: tuple[str, ...]) -> Tensor:
    """One text after the other, so that there is nothing to mask."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        rows = [
            model(**tokenizer(x, return_tensors="pt", truncation=True, max_length=24))[0][0].mean(0)
            for x in texts
        ]
    return torch.stack(rows)


def scores_of(run: Path) -> Tensor:
    """`[N, M]` of a run file of everything, ids being numbers."""
    scores = torch.full((len(QUERIES), len(CANDIDATES)), torch.nan)
    for line in run.read_text().splitlines():
        query, _, item, _, score, _ = line.split()
        scores[int(query), int(item)] = float(score)
    return scores


def cosine(q: Tensor, c: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize
    return unit(q, dim=1) @ unit(c, dim=1).T


def test_a_transformers_model_is_pooled_over_its_tokens(
    bert: Path, evaluate: Run, tmp_path: Path
) -> None:
    """Padding, batches and texts that are too long change nothing."""
    run = tmp_path / "run"
    q, c = (mean_of_each(bert, texts) for texts in (QUERIES, CANDIDATES))
    for size in (1, 3, 32):
        found = evaluate(bert, "--batch-size", size, "--run", run)
        assert report_of(q, c).items() <= found.items()
        torch.testing.assert_close(scores_of(run), cosine(q, c), rtol=1e-5, atol=1e-5)
    assert found["embeddings"] == f"{bert} (transformers, mean pooling over the attention mask)"


def test_prompts_stand_before_the_texts(bert: Path, evaluate: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    evaluate(bert, "--query-prompt", "find ", "--candidate-prompt", "here ", "--run", run)
    q = mean_of_each(bert, tuple(f"find {x}" for x in QUERIES))
    c = mean_of_each(bert, tuple(f"here {x}" for x in CANDIDATES))
    torch.testing.assert_close(scores_of(run), cosine(q, c), rtol=1e-5, atol=1e-5)


def test_a_sentence_transformers_model_keeps_its_pooling_and_prompts(
    sentence_model: Path, evaluate: Run, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    model = sentence_transformers.SentenceTransformer(str(sentence_model), device="cpu")
    c = torch.from_numpy(model.encode(list(CANDIDATES)))
    seen = [cosine(torch.from_numpy(model.encode(list(QUERIES))), c)]
    for options, prompt in (([], "find "), (["--query-prompt", "which "], "which ")):
        q = torch.from_numpy(model.encode([prompt + x for x in QUERIES]))
        found = evaluate(sentence_model, "--run", run, *options)
        torch.testing.assert_close(scores_of(run), cosine(q, c), rtol=1e-5, atol=1e-5)
        assert all((scores_of(run) - other).abs().max() > 0.01 for other in seen)
        seen.append(scores_of(run))
    assert found["embeddings"] == f"{sentence_model} (sentence-transformers)"


@pytest.fixture
def few_emoji(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command knows the first emoji alone, one for each query."""
    keys = emoji.load().grains[:FEW]

    def few(data: str, split: str) -> Task:
        task = built_in_task(data, split)
        pictures = task.candidate_pictures
        return task._replace(
            query_ids=task.query_ids[:FEW],
            query_texts=task.query_texts[:FEW],
            candidate_ids=task.candidate_ids[:FEW],
            candidate_texts=task.candidate_texts[:FEW],
            candidate_pictures=None if pictures is None else pictures[:FEW],
            levels=GrainKeys(keys, keys),
        )

    monkeypatch.setattr("grainrank.evaluation.inputs.built_in_task", few)


@pytest.mark.usefixtures("few_emoji")
def test_a_model_on_a_built_in_data_set(bert: Path, evaluate: Run) -> None:
    found = evaluate(bert, "--data", "emoji", "--split", "sv", texts=False)
    assert (found["queries"], found["candidates"]) == (FEW, FEW)
    assert found["data"] == "emoji, name (sv) to English name"
    assert [row["name"] for row in found["by_level"]] == ["group", "subgroup", "emoji"]
    task, keys = built_in_task("emoji", "sv"), emoji.load().grains[:FEW]
    q, c = (mean_of_each(bert, texts[:FEW]) for texts in (task.query_texts, task.candidate_texts))
    report = evaluate_embeddings(q, c, GrainKeys(keys, keys), level_names=task.level_names)
    assert found["ndcg@10[linear]"] == pytest.approx(report.ndcg, abs=1e-3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    transformers.logging.set_verbosity_error()
    alphabet = [chr(x) for x in range(97, 123)]
    words = ["<|startoftext|>", "<|endoftext|>", *alphabet, *(f"{x}</w>" for x in alphabet)]
    tokenizer = transformers.CLIPTokenizer({word: i for i, word in enumerate(words)}, [])
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
             "num_attention_heads": 2}  # fmt: skip
    config = transformers.CLIPConfig(
        text_config={
            **tower, "vocab_size": len(words), "max_position_embeddings": 32, "bos_token_id": 0,
            "eos_token_id": 1, "pad_token_id": 1,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=8,
    )  # fmt: skip
    torch.manual_seed(1)
    transformers.CLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    images = transformers.CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    transformers.CLIPProcessor(images, tokenizer).save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("few_emoji")
def test_clip_ranks_pictures_for_their_names(clip: Path, evaluate: Run, tmp_path: Path) -> None:
    run = tmp_path / "run"
    found = evaluate(
        clip, "--data", "emoji", "--split", "noto", "--run", run, "--depth", 5,
        "--batch-size", 16, texts=False,
    )  # fmt: skip
    assert (found["queries"], found["candidates"]) == (FEW, FEW)
    assert found["embeddings"] == f"{clip} (transformers, text and image features)"
    query, _, item, _, score, _ = run.read_text().splitlines()[0].split()
    model = transformers.CLIPModel.from_pretrained(clip)
    processor = transformers.AutoProcessor.from_pretrained(clip)
    task = built_in_task("emoji", "noto")
    assert task.candidate_pictures is not None
    picture = task.candidate_pictures[task.candidate_ids.index(item)]
    inputs = processor(
        text=[task.query_texts[int(query)]], images=[np.asarray(picture)], return_tensors="pt"
    )
    with torch.no_grad():
        out = model(**inputs)
    expected = (out.text_embeds * out.image_embeds).sum().item()
    assert float(score) == pytest.approx(expected, abs=1e-4)


def test_a_text_model_has_no_pictures(
    bert: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    assert main(["evaluate", f"--model={bert}", "--data=emoji", "--split=noto"]) == 2
    error = capsys.readouterr().err
    assert "--split noto ranks pictures, so --model must be a CLIP model, got" in error


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("./missing", "--model must be a folder or the name of a hub model, got ./missing"),
        ("some-name-that-is-not-cached", "--model some-name-that-is-not-cached could not be loade"),
    ],
)
def test_models_that_are_not_there(
    model: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", f"--model={model}", "--data=emoji"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
