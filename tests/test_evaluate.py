"""`evaluate_embeddings` and its report, against the metrics and slow loops."""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from grainrank import DenseLevels, metrics, positive_ranks
from grainrank.evaluation import Report, evaluate_embeddings
from grainrank.evaluation.table import show

N, M, D, L = 14, 60, 4, 3
KS = (1, 3, 10)


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


def test_the_picture_shows_the_shares(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    from grainrank.evaluation.picture import draw

    seen: list[Any] = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: seen.append(figure))
    report: Report = evaluate_embeddings(*embeddings(), DenseLevels(grades()))
    draw(report, tmp_path / "none.png")
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
