"""`grainrank evaluate` on files and on built-in data, against trec_eval and the function."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluate import KS, M, N, embeddings, grades
from torch import Tensor

from grainrank import GrainKeys
from grainrank.__main__ import main
from grainrank.data import icd10
from grainrank.demo.text import hashed_ngrams
from grainrank.evaluation import built_in_task, evaluate_embeddings

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def evaluate(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command and gives its JSON."""

    def run(*arguments: object) -> dict[str, Any]:
        code = main(["evaluate", "--json", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert (code, err) == (0, "")
        found: dict[str, Any] = json.loads(out)
        return found

    return run


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """The same as files, with ids in ascending order."""
    for name, rows in zip(("q", "c"), embeddings(), strict=True):
        np.save(tmp_path / f"{name}.npy", rows.numpy())
        ids = [f"{name}{i:03}" for i in range(len(rows))]
        (tmp_path / f"{name}.ids").write_text("\n".join(ids) + "\n")
    lines = [
        f"q{i:03} 0 c{j:03} {grade or -2 * (j % 2)}\n"
        for i, row in enumerate(grades().tolist())
        for j, grade in enumerate(row)
    ]
    (tmp_path / "qrels").write_text("".join(lines))
    return tmp_path


def judged(files: Path) -> list[object]:
    given = {"--queries": "q.npy", "--candidates": "c.npy", "--qrels": "qrels"}
    given |= {"--query-ids": "q.ids", "--candidate-ids": "c.ids"}
    return ["--dot", *(part for option, name in given.items() for part in (option, files / name))]


# Against trec_eval on the files that the command writes.


def test_the_numbers_are_those_of_trec_eval_on_the_run_file(files: Path, evaluate: Run) -> None:
    ir_measures = pytest.importorskip("ir_measures", reason="trec_eval (ir-measures) is missing")
    run = files / "run"
    found = evaluate(*judged(files), "--ks", "1,3,10", "--run", run, "--depth", M)
    qrels = list(ir_measures.read_trec_qrels(str(files / "qrels")))
    scored = list(ir_measures.read_trec_run(str(run)))
    assert len(scored) == N * M

    def theirs(name: str, rel: int) -> float:
        """Over the queries that have a relevant candidate, as ours."""
        kept = {x.query_id for x in qrels if x.relevance >= rel}
        measure = ir_measures.parse_measure(name)
        of_kept = [x for x in qrels if x.query_id in kept]
        value: float = ir_measures.calc_aggregate([measure], of_kept, scored)[measure]
        return value

    assert found["ndcg@10[linear]"] == pytest.approx(theirs("nDCG(dcg='log2')@10", 1), abs=1e-9)
    for row in found["by_level"]:
        rel = row["level"]
        expected = {"mrr": f"RR(rel={rel})", "map": f"AP(rel={rel})"}
        expected |= {f"recall@{k}": f"R(rel={rel})@{k}" for k in KS}
        expected |= {f"success@{k}": f"Success(rel={rel})@{k}" for k in KS}
        for key, name in expected.items():
            assert row[key] == pytest.approx(theirs(name, rel), abs=1e-9), (key, rel)


@pytest.mark.parametrize("ties", ["first", "last"])
def test_the_run_is_in_the_order_of_the_ranks(
    files: Path, evaluate: Run, ties: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the depth cuts through equal scores."""
    monkeypatch.setattr("grainrank.evaluation.run_file._CHUNK", 7)
    run, depth = files / "run", 7
    evaluate(*judged(files), "--run", run, "--depth", depth, "--ties", ties)
    q, c = embeddings()
    lines = iter(run.read_text().splitlines())
    for i, row in enumerate((q @ c.T).tolist()):
        sign = 1 if ties == "first" else -1
        best = sorted(range(M), key=lambda j, row=row, sign=sign: (-row[j], sign * j))[:depth]
        for rank, j in enumerate(best, start=1):
            query, q0, item, place, score, tag = next(lines).split()
            assert (query, q0, item, tag) == (f"q{i:03}", "Q0", f"c{j:03}", "grainrank")
            assert (int(place), float(score)) == (rank, row[j])
    assert next(lines, None) is None


def test_the_tie_rule_matters(files: Path, evaluate: Run) -> None:
    """Else equality with trec_eval would say nothing of it."""
    low, first, last, high = (
        evaluate(*judged(files), "--ties", ties)["ndcg@10[linear]"]
        for ties in ("pessimistic", "first", "last", "optimistic")
    )
    assert low < min(first, last) < max(first, last) < high


# Formats and outputs.


def test_safetensors_and_npy_give_the_same(files: Path, evaluate: Run) -> None:
    from safetensors.torch import save_file

    q, c = embeddings()
    save_file({"q": q}, files / "q.safetensors")
    save_file({"other": q, "c": c}, files / "both.safetensors")
    expected = evaluate(*judged(files))
    given = judged(files)
    given[2], given[4] = files / "q.safetensors", f"{files / 'both.safetensors'}:c"
    found = evaluate(*given)
    assert found.pop("embeddings") != expected.pop("embeddings")
    assert found == expected


def grains() -> tuple[Tensor, Tensor]:
    """Keys `[N, 3]` and `[M, 3]` of 3, 3 and 3 groups; some unknown."""
    generator = torch.Generator().manual_seed(2)
    q, c = (torch.randint(-1, 3, (n, 3), generator=generator) for n in (N, M))
    return q, c


@pytest.mark.parametrize("match", ["prefix", "count"])
def test_grains_as_integers_and_as_names_give_the_same(
    files: Path, evaluate: Run, match: Any
) -> None:
    keys = grains()
    for name, of in zip("qc", keys, strict=True):
        np.save(files / f"{name}-grains.npy", of.numpy().astype(np.int32))
        for suffix, mark in (("tsv", "\t"), ("csv", ",")):
            rows = [
                mark.join("" if x < 0 else f"group {9 - x}" for x in row) for row in of.tolist()
            ]
            lines = [mark.join(("shop", "line", "item")), *rows]
            (files / f"{name}-grains.{suffix}").write_text("\n".join(lines) + "\n")
    found = {}
    for suffix in ("npy", "tsv", "csv"):
        names = ["--grain-names", "shop,line,item"] if suffix == "npy" else []
        found[suffix] = evaluate(
            "--queries", files / "q.npy", "--candidates", files / "c.npy", "--match", match,
            "--query-grains", files / f"q-grains.{suffix}",
            "--candidate-grains", files / f"c-grains.{suffix}", *names,
        )  # fmt: skip
        del found[suffix]["data"]
    assert found["npy"] == found["tsv"] == found["csv"]
    report = evaluate_embeddings(
        *embeddings(), GrainKeys(*keys, match), level_names=("shop", "line", "item")
    )
    assert report.to_dict().items() <= found["npy"].items()
    assert [row["name"] for row in found["npy"]["by_level"]] == ["shop", "line", "item"]


def test_row_numbers_are_the_ids_where_none_are_given(files: Path, evaluate: Run) -> None:
    lines = [
        f"{i} 0 {j} {grade}"
        for i, row in enumerate(grades().tolist())
        for j, grade in enumerate(row)
        if grade > 0
    ]
    (files / "numbers").write_text("\n\n".join(lines))
    found = evaluate(
        "--dot", "--queries", files / "q.npy", "--candidates", files / "c.npy",
        "--qrels", files / "numbers",
    )  # fmt: skip
    expected = evaluate(*judged(files))
    assert found["by_level"] == expected["by_level"]


def test_a_corpus_searched_for_itself(files: Path, evaluate: Run) -> None:
    """The query itself is neither ranked nor written."""
    _, keys = grains()
    np.save(files / "grains.npy", keys.numpy())
    given: list[object] = [
        "--queries", files / "c.npy", "--candidates", files / "c.npy", "--run", files / "run",
        "--query-grains", files / "grains.npy", "--candidate-grains", files / "grains.npy",
    ]  # fmt: skip
    c, ids = embeddings()[1], torch.arange(M)
    expected = evaluate_embeddings(c, c, GrainKeys(keys, keys).exclude(ids, ids))
    assert expected.to_dict().items() <= evaluate(*given, "--exclude-self").items()
    rows = [line.split() for line in (files / "run").read_text().splitlines()]
    assert len(rows) == M * (M - 1)
    assert all(row[0] != row[2] for row in rows)
    evaluate(*given)
    assert len((files / "run").read_text().splitlines()) == M * M


def test_table_out_and_picture(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, picture = files / "report.json", files / "grains.png"
    given = [*judged(files), "--out", out, "--picture", picture]
    assert main(["evaluate", *map(str, given)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    row = next(line.split() for line in printed.splitlines() if line.startswith("grade 3"))
    finest = found["by_level"][-1]
    shares = ("recall@1", "recall@10", "success@1", "success@10", "mrr", "map", "top_hit")
    assert row == [
        "grade",
        "3",
        str(finest["queries"]),
        *(f"{100 * finest[x]:.1f}" for x in shares),
        "-",
    ]
    assert f"nDCG@10[linear] {100 * found['ndcg@10[linear]']:.1f}, " in printed
    assert max(map(len, printed.splitlines())) <= 110 + len(str(files)) * 2
    assert picture.read_bytes().startswith(b"\x89PNG")


# Built-in data.


def hashed(texts: Any) -> np.ndarray[Any, Any]:
    """Counts of hashed n-grams, `[n, 256]`."""
    bags = hashed_ngrams(texts)
    rows = np.repeat(np.arange(len(texts)), np.diff(bags.offsets.numpy()))
    counts = np.zeros((len(texts), 256), np.float32)
    np.add.at(counts, (rows, bags.ids.numpy() % 256), 1)
    return counts


@pytest.mark.parametrize(("data", "split"), [("icd10", "validation_seen"), ("emoji", "pt")])
def test_embeddings_of_a_built_in_data_set(
    data: str, split: str, tmp_path: Path, evaluate: Run
) -> None:
    if data == "icd10":
        pytest.importorskip("simple_icd_10_cm", reason="needs the extra [text]")
    task = built_in_task(data, split)
    q, c = (hashed(texts) for texts in (task.query_texts, task.candidate_texts))
    np.save(tmp_path / "q.npy", q)
    np.save(tmp_path / "c.npy", c)
    found = evaluate(
        "--data", data, "--split", split,
        "--queries", tmp_path / "q.npy", "--candidates", tmp_path / "c.npy",
    )  # fmt: skip
    assert found["judged_queries"] == found["top_hits"]["queries"] == len(q)
    assert [row["name"] for row in found["by_level"]] == list(task.level_names or ())
    # The one right candidate, among those that rounding may put above it.
    unit = torch.nn.functional.normalize
    scores = unit(torch.from_numpy(q), dim=1) @ unit(torch.from_numpy(c), dim=1).T
    levels = task.levels.block(0, len(q), len(c))
    right = scores.gather(1, levels.argmax(dim=1, keepdim=True))
    finest = found["by_level"][-1]
    for k in (1, 10):
        low = ((scores >= right - 1e-6).sum(dim=1) <= k).double().mean().item()
        high = ((scores > right + 1e-6).sum(dim=1) < k).double().mean().item()
        assert 0 < low <= finest[f"recall@{k}"] == finest[f"success@{k}"] <= high < 1


def test_icd10_leaves_out_near_duplicates() -> None:
    pytest.importorskip("simple_icd_10_cm", reason="needs the extra [text]")
    task, data = built_in_task("icd10"), icd10.load()
    kept = data.queries["test_seen"].without_near_duplicates()
    assert task.query_texts == kept.texts
    assert len(kept) < len(data.queries["test_seen"])
    levels = task.levels.block(0, len(kept), len(data.codes))
    assert torch.equal(levels.argmax(dim=1), kept.targets)
