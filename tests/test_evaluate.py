"""`evaluate_embeddings` and the command on files: trec_eval, slow loops, and the metrics."""

from __future__ import annotations

import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grainrank import DenseLevels, GrainKeys, metrics, positive_ranks
from grainrank.__main__ import main
from grainrank.data import icd10
from grainrank.demo.text import hashed_ngrams
from grainrank.evaluation import Report, built_in_task, evaluate_embeddings
from grainrank.evaluation.table import show

N, M, D, L = 14, 60, 4, 3
KS = (1, 3, 10)
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


def embeddings() -> tuple[Tensor, Tensor]:
    """Dot products of few values, exact: most candidates tie with others."""
    generator = torch.Generator().manual_seed(0)
    q, c = (torch.randint(-2, 3, (n, D), generator=generator) / 2 for n in (N, M))
    return q, c


def grades() -> Tensor:
    """`[N, M]`, most of them 0; the first query has no positive, the second none above 1."""
    generator = torch.Generator().manual_seed(1)
    levels = torch.randint(0, L + 1, (N, M), generator=generator)
    levels[torch.rand(N, M, generator=generator) < 0.8] = 0
    levels[:, 0] = torch.arange(N) % (L + 1)
    levels[0], levels[1] = 0, levels[1].clamp(max=1)
    return levels


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


# Against the metrics, and loops.


@pytest.mark.parametrize("gain", ["linear", "exp2", (0.0, 1.0, 1.0, 4.0)])
def test_the_report_holds_the_metrics(gain: Any) -> None:
    (q, c), levels = embeddings(), DenseLevels(grades())
    report = evaluate_embeddings(q, c, levels, ks=KS, ndcg_k=5, gain=gain)
    ranks = positive_ranks(q, c, levels, ties="last")

    def mean(values: Tensor, level: int = 1) -> float:
        return metrics.mean_over_queries(values, ranks, level).item()

    assert report.ndcg == mean(metrics.ndcg_at(ranks, 5, gain=gain))
    assert report.ndcg_name == {"linear": "ndcg@5[linear]", "exp2": "ndcg@5[exp2]"}.get(
        gain, "ndcg@5[0,1,1,4]"
    )
    assert report.hierarchical_ap == mean(metrics.hierarchical_average_precision(ranks))
    assert report.level_violation_rate == mean(metrics.level_violation_rate(ranks))
    for scores in report.levels:
        level = scores.level
        assert scores.recall == {k: mean(metrics.recall_at(ranks, k, level), level) for k in KS}
        assert scores.success == {k: mean(metrics.success_at(ranks, k, level), level) for k in KS}
        assert scores.mrr == mean(metrics.reciprocal_rank(ranks, level), level)
        assert scores.map == mean(metrics.average_precision(ranks, level), level)


def test_counts_and_top_hits_equal_slow_loops() -> None:
    (q, c), levels = embeddings(), grades().tolist()
    report = evaluate_embeddings(q, c, DenseLevels(grades()), normalize=False)
    orders = [sorted(range(M), key=lambda j, row=row: (-row[j], -j)) for row in (q @ c.T).tolist()]
    assert (report.queries, report.candidates, report.max_level) == (N, M, L)
    assert report.judged == sum(max(row) > 0 for row in levels) < N
    could = [i for i, row in enumerate(levels) if max(row) == L]
    assert (report.top_queries, report.levels[-1].queries) == (len(could), len(could))
    assert len(could) < report.levels[0].queries
    tops = [levels[i][orders[i][0]] for i in could]
    wrong = [top for top in tops if top < L]
    assert report.wrong == len(wrong) > 0
    for scores in report.levels:
        assert scores.top_hit == pytest.approx(sum(t >= scores.level for t in tops) / len(tops))
    for scores in report.levels[:-1]:
        share = sum(t >= scores.level for t in wrong) / len(wrong)
        assert scores.wrong_top_hit == pytest.approx(share)
    assert report.levels[-1].wrong_top_hit is None
    best = [sorted(row, reverse=True) for row in levels]
    for rank in range(10):
        for level in range(1, L + 1):
            at_least = sum(levels[i][orders[i][rank]] >= level for i in could) / len(could)
            ideal = sum(best[i][rank] >= level for i in could) / len(could)
            assert report.top_hits_by_rank[rank][level - 1] == pytest.approx(at_least)
            assert report.best_by_rank[rank][level - 1] == pytest.approx(ideal)


def test_shares_of_nothing_are_none() -> None:
    eye = torch.eye(3)
    perfect = evaluate_embeddings(eye, eye, DenseLevels(2 * torch.eye(3).long()))
    assert (perfect.wrong, perfect.levels[0].wrong_top_hit) == (0, None)
    assert perfect.levels[1].top_hit == 1.0
    empty = evaluate_embeddings(eye, eye, DenseLevels(torch.zeros(3, 3).long(), max_level=2))
    assert (empty.judged, empty.ndcg, empty.levels[1].map, empty.levels[0].top_hit) == (
        0, None, None, None,
    )  # fmt: skip
    assert empty.top_hits_by_rank == ()
    for report in (perfect, empty):
        assert "nan" not in report.table() + json.dumps(report.to_dict())


def test_arrays_and_memmaps_equal_tensors(tmp_path: Path) -> None:
    (q, c), levels = embeddings(), DenseLevels(grades())
    expected = evaluate_embeddings(q, c, levels)
    swapped = (q.numpy().astype(">f4"), c.numpy().astype(">f4"))
    np.save(tmp_path / "c.npy", c.numpy())
    mapped = (q.numpy(), np.load(tmp_path / "c.npy", mmap_mode="r"))
    for arrays in (swapped, mapped):
        assert evaluate_embeddings(*arrays, levels) == expected
    whole, blocks = (
        evaluate_embeddings(q, c, levels, normalize=False, workspace_mb=mb) for mb in (None, 0.01)
    )
    assert whole == blocks


def test_errors_of_the_function() -> None:
    q, c = embeddings()
    levels = DenseLevels(grades())
    for options, message in (
        ({"ks": ()}, r"ks must be a sequence of ints, got \(\); pass \(1, 10\)"),
        ({"ks": 10}, "ks must be a sequence of ints, got 10"),
        ({"level_names": "abc"}, "level_names must be a sequence of strings, got 'abc'"),
        ({"level_names": ["a", "b"]}, "level_names must hold L = 3 names.*got 2: a, b"),
        ({"ties": "random"}, "ties must be one of 'first'.*got 'random'"),
        ({"gain": 3}, "gain must be a sequence of numbers"),
        ({"gain": [0, 1]}, "gain must hold L \\+ 1 = 4 numbers"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            evaluate_embeddings(q, c, levels, **options)  # type: ignore[arg-type]


# The command: formats and outputs.


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


def test_a_terminal_shows_the_same(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("rich", reason="needs the extra [cli]")
    report = evaluate_embeddings(
        *embeddings(), DenseLevels(grades()), level_names=("[a]", "b", "c")
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    show(report)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert printed.split() == report.table().split()


def test_the_picture_shows_the_shares(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    from grainrank.evaluation.picture import draw

    seen: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: seen.append(figure))
    report: Report = evaluate_embeddings(*embeddings(), DenseLevels(grades()))
    draw(report, files / "none.png")
    for axes, shares in zip(
        seen[0].axes, (report.top_hits_by_rank, report.best_by_rank), strict=True
    ):
        heights = [[patch.get_height() for patch in bars] for bars in axes.containers]
        for rank, row in enumerate(shares):
            exact = [*row, 0.0]
            expected = [a - b for a, b in itertools.pairwise(exact)]
            assert [bars[rank] for bars in heights] == pytest.approx([*expected[::-1], 1 - row[0]])


def test_the_python_of_the_document(capsys: pytest.CaptureFixture[str]) -> None:
    text = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) == 1
    exec(blocks[0], {})
    assert capsys.readouterr().out.startswith("100 of 100 queries, 100 candidates; cosine")


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
