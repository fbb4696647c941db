"""benchmarks/train_ranks.py: its losses, a short run, and what the documents show of its result."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from grainrank.data import icd10
from grainrank.demo import encoder, metrics, text, training
from grainrank.demo.recipes import INFONCE, INFONCE_GRADED, MULTI_LEVEL

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "train-ranks-icd10.json"
TRICKS = {"rho", "delta", "share", "warm_epochs", "learning_rate"}  # tried of one loss alone
CODES, TRAINING = 48, 1100  # two batches


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("train_ranks")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> icd10.Icd10:
    """48 codes in 2 chapters, 4 blocks, 16 categories; a term has its code's word."""
    for owner in (encoder, text):
        monkeypatch.setattr(owner, "BUCKETS", 1024)
    index = torch.arange(CODES)
    words = [format(7919 * (i + 1) % 10007, "014b").replace("0", "a") for i in range(CODES)]

    def queries(count: int, first: int) -> icd10.Queries:
        targets = (torch.arange(count) + first) % CODES
        texts = [f"{words[t]} number {first + i}" for i, t in enumerate(targets.tolist())]
        return icd10.Queries(tuple(texts), targets, torch.arange(count) % 7 == 3)

    splits = ("validation_seen", "validation_unseen", "test_seen", "test_unseen")
    data = icd10.Icd10(
        codes=tuple(f"C{i:02}" for i in range(CODES)),
        candidates=tuple(f"the {word} disease" for word in words),
        grains=torch.stack([index // 24, index // 12, index // 3, index], dim=1),
        grain_names=("chapter", "block", "category", "code"),
        queries={"train": queries(TRAINING, 0)}
        | {name: queries(20 + i, 100 * i) for i, name in enumerate(splits)},
    )
    monkeypatch.setattr(icd10, "load", lambda: data)
    return data


def committed() -> dict[str, Any]:
    result: dict[str, Any] = json.loads(RESULT.read_text(encoding="utf-8"))
    return result


def test_the_recipes_of_the_demo_are_the_same_losses(module: Any) -> None:
    recipes = importlib.import_module("rank_recipes")
    generator = torch.Generator().manual_seed(1)
    q, c = torch.randn(2, 12, 8, generator=generator, dtype=torch.float64)
    grains = torch.randint(0, 3, (12, 4), generator=generator)
    demo = {"info_nce": INFONCE, "info_nce_graded": INFONCE_GRADED, "multi_level": MULTI_LEVEL}
    for key, recipe in demo.items():
        ours = recipes.METHODS[key]
        assert ours.epochs == recipe.epochs
        expected = training.batch_loss(recipe, q, c, grains)
        torch.testing.assert_close(recipes.batch_loss(ours, q, c, grains), expected)


def test_another_upper_bound_is_the_public_loss_at_its_numbers(module: Any) -> None:
    recipes = importlib.import_module("rank_recipes")
    generator = torch.Generator().manual_seed(2)
    q, c = torch.randn(2, 12, 8, generator=generator, dtype=torch.float64)
    keys = torch.randint(0, 3, (12, 4), generator=generator)
    recipe = recipes.Recipe("hierarchical_ap", 0.1)
    forth, back = (
        recipes._other_bound(recipe, x, y, recipes.GrainKeys(keys, keys))
        for x, y in ((q, c), (c, q))
    )
    expected = recipes.batch_loss(recipe, q, c, keys)
    torch.testing.assert_close((forth + back) / 2, expected)


def test_a_warm_start_and_a_share_take_info_nce(module: Any) -> None:
    recipes = importlib.import_module("rank_recipes")
    generator = torch.Generator().manual_seed(3)
    q, c = torch.randn(2, 12, 8, generator=generator, dtype=torch.float64)
    grains = torch.randint(0, 3, (12, 4), generator=generator)
    binary, ranks = (
        recipes.batch_loss(recipes.Recipe(name, 0.1), q, c, grains)
        for name in ("info_nce", "hierarchical_ap")
    )
    loss = recipes.training_loss(recipes.Recipe("hierarchical_ap", 0.1, warm_epochs=2), steps=1)
    assert [loss(q, c, grains) for _ in range(4)] == [binary, binary, ranks, ranks]
    mixed = recipes.Recipe("hierarchical_ap", 0.1, share=0.75)
    expected = 0.75 * ranks + 0.25 * binary
    torch.testing.assert_close(recipes.batch_loss(mixed, q, c, grains), expected)


def test_metrics_are_those_of_the_demo(module: Any, tiny: icd10.Icd10) -> None:
    features = training.featurise(tiny)
    model = encoder.make_encoder(0).eval()
    queries, values = module.evaluate(model, tiny, features, ("test_seen",))
    with torch.inference_mode():
        blocks = metrics.cosine_blocks(
            model(features.queries["test_seen"]), model(features.candidates)
        )
        ranking = metrics.rank(blocks, tiny.queries["test_seen"].targets, tiny.grains)
    kept = ~tiny.queries["test_seen"].near_duplicate
    expected = metrics.summarise(ranking.select(kept), tiny.grain_names)
    assert queries == int(kept.sum())
    for name in ("recall@1", "recall@10", "ndcg@10[linear]"):
        assert values[name] == pytest.approx(expected[name], abs=1e-6)


def test_a_quick_run_writes_what_the_committed_file_has(
    module: Any, tiny: icd10.Icd10, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    module.main(["--quick", "--out", str(out), "--methods", "info_nce", "hierarchical_ap"])
    module.main(["--quick", "--out", str(out), "--methods", "smooth_ndcg"])
    module.main(["--quick", "--out", str(out), "--tune"])
    found = json.loads(out.read_text(encoding="utf-8"))
    methods = found["testing"]["methods"]
    assert list(methods) == ["info_nce", "hierarchical_ap", "smooth_ndcg"]
    losses = [run["recipe"]["loss"] for run in found["tuning"]["runs"]]
    assert sorted(losses) == sorted({recipe.loss for recipe in module.GRID})
    assert "| hierarchical AP | " in capsys.readouterr().out
    assert _shape(methods["smooth_ndcg"]) == _shape(
        committed()["testing"]["methods"]["smooth_ndcg"]
    )
    assert _shape(found["tuning"]["runs"][0]) == _shape(committed()["tuning"]["runs"][0])
    for method in methods.values():
        for split in module.TEST:
            kept = int((~tiny.queries[split].near_duplicate).sum())
            assert method["splits"][split]["queries"] == kept
            for metric in method["splits"][split]["metrics"].values():
                assert 0 <= metric["mean"] <= 1


def test_a_command_that_was_stopped_trains_what_it_had_not_finished(
    module: Any, tiny: icd10.Icd10, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)  # one run after the other
    arguments = ["--quick", "--methods", "info_nce", "multi_level", "--out"]
    train, trained = module.train_and_evaluate, []

    def stops(recipe: Any, *rest: Any) -> Any:
        trained.append(recipe.loss)
        if len(trained) == 2:
            raise KeyboardInterrupt
        return train(recipe, *rest)

    monkeypatch.setattr(module, "train_and_evaluate", stops)
    with pytest.raises(KeyboardInterrupt):
        module.main([*arguments, str(tmp_path / "result.json")])
    module.main([*arguments, str(tmp_path / "result.json")])
    assert trained == ["info_nce", "multi_level", "multi_level"]
    module.main([*arguments, str(tmp_path / "whole.json")])
    found, whole = (
        json.loads((tmp_path / name).read_text(encoding="utf-8"))["testing"]["methods"]
        for name in ("result.json", "whole.json")
    )
    assert [m["splits"] for m in found.values()] == [m["splits"] for m in whole.values()]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["result.json", "whole.json"]


def test_a_result_that_cannot_be_read_or_written_is_one_line(
    module: Any, tiny: icd10.Icd10, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "result.json").write_text("{", encoding="utf-8")
    for out in ("result.json", "result.json/folder.json"):
        with pytest.raises(SystemExit) as end:
            module.main(["--quick", "--out", str(tmp_path / out)])
        assert end.value.code == 1
        printed = capsys.readouterr().err
        assert printed.startswith(f"train_ranks: {tmp_path / out} cannot be ")
        assert printed.count("\n") == 1


def test_quick_figures_do_not_replace_the_committed_ones(module: Any) -> None:
    with pytest.raises(SystemExit):
        module.main(["--quick"])


def test_the_recipes_are_those_of_the_highest_ndcg_in_the_tuning(module: Any) -> None:
    """The demo chose its own; of each other loss and of the multi-level one once more."""
    recipes = importlib.import_module("rank_recipes")
    runs = committed()["tuning"]["runs"]
    assert [run["recipe"] for run in runs] == [_as_json(r.told()) for r in recipes.GRID]
    for key in ("multi_level_graded", "hierarchical_ap", "smooth_ndcg", "lambda_loss"):
        chosen = recipes.METHODS[key].told()
        own = [
            run
            for run in runs
            if run["recipe"]["loss"] == chosen["loss"] and not TRICKS & run["recipe"].keys()
        ]
        best = max(own, key=lambda run: run["metrics"]["ndcg@10[linear]"])
        assert best["recipe"] | {"epochs": chosen["epochs"]} == _as_json(chosen)


@pytest.mark.parametrize("heading", ["Seen codes", "Codes never seen in training"])
def test_the_document_shows_the_result_file(module: Any, heading: str) -> None:
    split = "test_seen" if heading == "Seen codes" else "test_unseen"
    methods = committed()["testing"]["methods"]
    assert list(methods) == list(module.METHODS)
    assert [methods[key]["recipe"] for key in methods] == [
        _as_json(recipe.told()) for recipe in module.METHODS.values()
    ]
    document = (ROOT / "docs" / "losses.md").read_text(encoding="utf-8")
    queries = methods["info_nce"]["splits"][split]["queries"]
    expected = f"{heading} ({queries:,} queries):\n\n{module.table(methods, split)}\n"
    assert expected in document


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _shape(value: Any) -> Any:
    """Names and kinds of what the JSON holds."""
    if isinstance(value, dict):
        return {key: _shape(inner) for key, inner in value.items()}
    return "numbers" if isinstance(value, int | float | list | None) else type(value).__name__
