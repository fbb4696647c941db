"""The demo: its metrics against slow loops, its baseline, and a tiny run through the command."""

import json
import sys
import zlib
from types import SimpleNamespace

import pytest
import tiny_icd10
import torch
from tiny_icd10 import CODES

from grainrank.__main__ import main
from grainrank.data import icd10
from grainrank.demo import metrics, text, tfidf, training
from grainrank.demo.recipes import INFONCE, INFONCE_GRADED, MULTI_LEVEL, methods, sweep
from grainrank.demo.training import Recipe, batch_loss, run_side_by_side


@pytest.fixture(scope="module")
def tiny():
    return tiny_icd10.data()


@pytest.fixture
def small(monkeypatch):
    tiny_icd10.shrink(monkeypatch.setattr)


@pytest.fixture
def demo(small, tiny, tmp_path, monkeypatch):
    """Runs the command on the tiny data; gives its exit code and folder."""
    monkeypatch.setattr(icd10, "load", lambda: tiny)

    def run(*arguments):
        out = tmp_path / "out"
        return main(["demo", "--out", str(out), *arguments]), out

    return run


# Features


def test_ngrams_are_all_substrings_of_three_to_five():
    bags = text.hashed_ngrams(["Ab-c NOS", "x"])
    padded = b" ab c "
    expected = [padded[i : i + k] for k in (3, 4, 5) for i in range(len(padded) - k + 1)]
    assert bags.ids[: bags.offsets[1]].tolist() == [zlib.crc32(g) % 65_536 for g in expected]
    assert bags.offsets.tolist() == [0, len(expected), len(expected) + 1]


def test_selected_bags_are_the_bags_of_the_selected_texts(tiny):
    texts = tiny.candidates[:9]
    rows = torch.tensor([7, 0, 7, 3])
    some = text.hashed_ngrams(texts).select(rows)
    expected = text.hashed_ngrams([texts[i] for i in rows.tolist()])
    assert torch.equal(some.ids, expected.ids)
    assert torch.equal(some.offsets, expected.offsets)
    both = some.followed_by(text.hashed_ngrams(texts))
    expected = text.hashed_ngrams([*(texts[i] for i in rows.tolist()), *texts])
    assert torch.equal(both.ids, expected.ids)
    assert torch.equal(both.offsets, expected.offsets)


def test_tfidf_equals_a_dense_computation(small, tiny):
    queries = text.hashed_ngrams(tiny.queries["test_seen"].texts)
    candidates = text.hashed_ngrams(tiny.candidates)

    def dense(bags):
        rows = bags.ids.tensor_split(bags.offsets[1:-1])
        return torch.stack([torch.bincount(r, minlength=text.BUCKETS) for r in rows]).double()

    c, q = dense(candidates), dense(queries)
    idf = torch.log((1 + CODES) / (1 + (c > 0).sum(0))) + 1
    unit = torch.nn.functional.normalize
    expected = unit(q * idf, dim=1) @ unit(c * idf, dim=1).T
    actual = torch.cat(list(tfidf.tfidf_blocks(queries, candidates)))
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-6)


# Training


def test_the_baseline_is_infonce_with_all_pairs_of_one_code_positive():
    generator = torch.Generator().manual_seed(1)
    q, c = torch.randn(2, 10, 8, generator=generator, dtype=torch.float64)
    grains = torch.randint(0, 3, (10, 2), generator=generator)
    unit = torch.nn.functional.normalize
    logits = unit(q, dim=1) @ unit(c, dim=1).T / 0.2

    def one_direction(z):
        total = 0.0
        for i in range(10):
            same = [j for j in range(10) if grains[j, -1] == grains[i, -1]]
            total += z[i].logsumexp(0) - z[i][same].logsumexp(0)
        return total / 10

    expected = (one_direction(logits) + one_direction(logits.T)) / 2
    actual = batch_loss(Recipe("infonce", 0.2, 1), q, c, grains)
    torch.testing.assert_close(actual, expected)
    assert batch_loss(Recipe("multi_level", 0.2, 1), q, c, grains) != actual


def test_training_learns_is_repeatable_and_leaves_the_random_state_alone(small, tiny):
    features = training.featurise(tiny)
    recipe = Recipe("multi_level", 0.1, 20)
    state = torch.random.get_rng_state()

    def job(on_step):
        return training.train(recipe, 0, tiny, features, on_step)

    steps = []
    encoders = run_side_by_side([job, job], lambda: steps.append(1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(steps) == 2 * training.steps_of(recipe, tiny) == 2 * 20 * 4
    for a, b in zip(*(e.state_dict().values() for e in encoders), strict=True):
        assert torch.equal(a, b)
    with torch.inference_mode():
        blocks = metrics.cosine_blocks(
            encoders[0](features.queries["test_seen"]), encoders[0](features.candidates)
        )
        targets = tiny.queries["test_seen"].targets
        found = metrics.summarise(metrics.rank(blocks, targets, tiny.grains), tiny.grain_names)
    assert found["recall@1"] > 0.8


def test_a_failed_job_stops_the_others_and_restores_the_threads():
    threads = torch.get_num_threads()

    def fails(on_step):
        raise OSError("disk full")

    def endless(on_step):
        while True:
            on_step()

    with pytest.raises(OSError, match="disk full"):
        run_side_by_side([endless, fails] if threads > 1 else [fails, endless], lambda: None)
    assert torch.get_num_threads() == threads


def test_fewer_epochs_shorten_every_recipe():
    assert [m.recipe.epochs for m in methods(3) if m.recipe] == [3, 3, 3]
    assert [m.recipe for m in methods(20) if m.recipe] == [INFONCE, INFONCE_GRADED, MULTI_LEVEL]
    assert INFONCE.epochs == MULTI_LEVEL.epochs > INFONCE_GRADED.epochs
    assert len({m.key for m in sweep(20)}) == len(sweep(20)) == 6 * (3 + 1)


# The command


def test_the_demo_writes_results_examples_and_one_table(demo, tiny, capsys):
    code, out = demo("--seeds", "2", "--epochs", "2")
    assert code == 0
    found = json.loads((out / "results.json").read_text())
    assert found["machine"]["torch"] == torch.__version__
    assert found["data"]["candidates"] == CODES
    for key, method in found["methods"].items():
        assert method["seeds"] == ([0] if key == "tfidf" else [0, 1])
        for split in ("test_seen", "test_unseen"):
            kept = int((~tiny.queries[split].near_duplicate).sum())
            assert method["splits"][split]["queries"] == kept
            assert method["splits_unfiltered"][split]["queries"] == 36
            assert all(
                abs(sum(row) - 1) < 1e-9 for row in method["splits"][split]["levels_by_rank"]
            )
            recall = method["splits"][split]["metrics"]["recall@1"]
            assert recall["mean"] == pytest.approx(sum(recall["runs"]) / len(recall["runs"]))
            assert (recall["std"] is None) == (key == "tfidf")
    assert len(found["examples"]["queries"]) == 10
    assert all(len(hits) == 5 for e in found["examples"]["queries"] for hits in e["top"].values())
    text_of_examples = (out / "examples.txt").read_text()
    assert all(example["query"] in text_of_examples for example in found["examples"]["queries"])
    printed = capsys.readouterr()
    assert printed.out.count("nDCG@10[linear]") == 1
    assert "labels that InfoNCE and TF-IDF are not given" in " ".join(printed.out.split())
    assert "100% (" in printed.err  # plain lines: no terminal here


def test_json_goes_to_the_standard_output_alone(demo, capsys):
    code, out = demo("--seeds", "1", "--epochs", "1", "--json")
    assert code == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "results.json").read_text())


def test_tuning_looks_at_the_validation_queries_only(demo, tiny, monkeypatch, capsys):
    held_back = {name: split for name, split in tiny.queries.items() if "test" not in name}
    blind = icd10.Icd10(tiny.codes, tiny.candidates, tiny.grains, tiny.grain_names, held_back)
    monkeypatch.setattr(icd10, "load", lambda: blind)
    code, out = demo("--tune", "--seeds", "1", "--epochs", "5")
    assert code == 0
    assert not out.exists()
    assert capsys.readouterr().out.count("infonce t 0.1,") == 1


def test_a_picture_is_drawn(demo):
    pytest.importorskip("matplotlib", reason="needs the extra [plot]")
    _, out = demo("--quick", "--epochs", "1")
    assert (out / "grain_blindness.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_demo_ends_and_names_the_extra(demo, monkeypatch, capsys):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    code, out = demo("--quick", "--epochs", "1")
    assert code == 0
    assert not (out / "grain_blindness.png").exists()
    printed = capsys.readouterr()
    assert "pip install 'grainrank[plot]'" in printed.err
    assert "recall@10" in printed.out


def test_without_the_data_package_the_demo_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(sys.modules, "simple_icd_10_cm", None)
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    assert "pip install 'grainrank[text]'" in capsys.readouterr().err


def test_tables_that_cannot_be_read_are_one_line(tmp_path, monkeypatch, capsys):
    """The package reads them while it is imported."""
    (tmp_path / "simple_icd_10_cm.py").write_text("raise ValueError('not well-formed: line 1')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "simple_icd_10_cm", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert main(["demo", "--out", str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().err
    assert "cannot be read (ValueError: not well-formed: line 1); reinstall it with" in printed
    assert printed.count("\n") == 1


@pytest.mark.parametrize("arguments", [[], ["nothing"], ["demo", "--seeds", "0"]])
def test_wrong_arguments_end_with_code_two(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    assert "usage: grainrank" in capsys.readouterr().err


def test_tuning_has_no_json(small, capsys):
    assert main(["demo", "--tune", "--json"]) == 2
    assert "leave out --json" in capsys.readouterr().err


def test_rank_zero_alone_shows_progress(monkeypatch, capsys):
    from grainrank.demo import progress

    distributed = SimpleNamespace(
        is_available=lambda: True, is_initialized=lambda: True, get_rank=lambda: 1
    )
    monkeypatch.setattr(progress.torch, "distributed", distributed)
    with progress.progress("training", 2) as step:
        step()
    assert capsys.readouterr().err == ""
    distributed.get_rank = lambda: 0
    with progress.progress("training", 2) as step:
        step()
    assert capsys.readouterr().err.startswith("training: 50% (1 of 2 steps, ")
