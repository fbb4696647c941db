"""`grainrank plot`: which file is whose, what is drawn, and what cannot be."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from grainrank import GrainKeys
from grainrank.__main__ import main
from grainrank.bench import measure
from grainrank.evaluation import evaluate_embeddings
from grainrank.plot import files
from grainrank.plot.report import report_from

pytest.importorskip("matplotlib", reason="needs the extra [plot]")
DEMO = Path(__file__).parents[1] / "benchmarks" / "results" / "demo-icd10.json"
PNG = b"\x89PNG"


def report() -> Any:
    generator = torch.Generator().manual_seed(0)
    q, c = (torch.randn(n, 6, generator=generator) for n in (20, 30))
    keys = (torch.randint(3, (n, 2), generator=generator) for n in (20, 30))
    return evaluate_embeddings(q, c, GrainKeys(*keys))


def step(milliseconds: float, mebibytes: float | None = None) -> dict[str, Any]:
    found: dict[str, Any] = {"median_seconds": milliseconds / 1000}
    if mebibytes is not None:
        found["peak_bytes"] = mebibytes * 2**20
    return found


def bench(*shapes: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "machine": {"cpu": "A chip"},
        "loss": "multi_level",
        "levels": 3,
        "dtype": "float32",
        "rounds": 1,
        "shapes": list(shapes),
        **changed,
    }


def shape(n: int, m: int | None = None, **providers: dict[str, Any]) -> dict[str, Any]:
    return {"n": n, "m": m or n, "dim": 8, "providers": providers}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """Writes each as JSON."""

    def write(*found: object) -> list[str]:
        paths = [tmp_path / f"{i}.json" for i in range(len(found))]
        for path, x in zip(paths, found, strict=True):
            path.write_text(json.dumps(x))
        return [str(path) for path in paths]

    return write


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, written: Any, tmp_path: Path) -> Any:
    """Draws files of bench; gives the figure."""

    def draw(*benches: dict[str, Any]) -> Any:
        from matplotlib.figure import Figure

        figures = []
        save = Figure.savefig
        with monkeypatch.context() as patched:
            patched.setattr(
                Figure, "savefig", lambda self, *a, **k: (figures.append(self), save(self, *a, **k))
            )
            assert main(["plot", *written(*benches), "--out", str(tmp_path / "x.png")]) == 0
        (figure,) = figures
        return figure

    return draw


def lines(axes: Any) -> dict[str, list[tuple[float, float]]]:
    return {
        line.get_label(): [(x, pytest.approx(y)) for x, y in line.get_xydata()]
        for line in axes.lines
    }


# Bench.


def test_what_bench_writes_is_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "can_measure", lambda: False)
    found, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    small = ["--n", "8", "16", "--dim", "4", "--rounds", "1", "--device", "cpu"]
    assert main(["bench", *small, "--out", str(found), "--json"]) == 0
    capsys.readouterr()
    assert main(["plot", str(found), "--out", str(picture), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {
        "command": "bench", "files": [str(found)], "picture": str(picture),
    }  # fmt: skip
    assert picture.read_bytes().startswith(PNG)


def test_time_and_memory_of_each_provider(drawn: Any) -> None:
    figure = drawn(
        bench(
            shape(64, grainrank=step(2.0, 3.0), dense=step(5.0, 8.0), products=step(1.0, 2.0)),
            shape(32, grainrank=step(1.0, 1.0), dense={"skipped": "no memory"}, products=step(0.5)),
        )
    )
    time, memory = figure.axes
    assert lines(time) == {
        "grainrank": [(32, 1.0), (64, 2.0)],
        "dense PyTorch": [(64, 5.0)],
        "bare products": [(32, 0.5), (64, 1.0)],
    }
    assert lines(memory) == {
        "grainrank": [(32, 1.0), (64, 3.0)],
        "dense PyTorch": [(64, 8.0)],
        "bare products": [(64, 2.0)],
    }
    assert {time.get_xscale(), time.get_yscale(), memory.get_yscale()} == {"log"}
    (title,) = figure.texts
    assert title.get_text() == (
        "One training step, A chip, multi_level loss of 3 levels, float32, D 8"
    )


def test_files_are_merged(drawn: Any) -> None:
    """Lines are told apart by what differs; of equal points the later file's counts."""
    figure = drawn(
        bench(shape(32, grainrank=step(1.0)), shape(64, grainrank=step(9.0))),
        bench(shape(64, grainrank=step(2.0)), shape(128, grainrank=step(4.0))),
        bench(shape(32, 96, grainrank=step(3.0)), loss="clip", levels=1),
    )
    assert lines(figure.axes[0]) == {
        "grainrank, multi_level loss of 3 levels, M = N": [(32, 1.0), (64, 2.0), (128, 4.0)],
        "grainrank, clip loss, M 96": [(32, 3.0)],
    }
    memory = figure.axes[1]
    assert memory.texts[0].get_text() == "not measured"


# The suite of benchmarks/.


def suite(*shapes: dict[str, Any], **changed: Any) -> dict[str, Any]:
    labels = {"grainrank": "grainrank", "chunked": "chunks", "open_clip": "open_clip"}
    return {
        **bench(*shapes),
        "machine": {"cpu": "A chip", "threads": 2},
        "loss": "clip",
        "labels": {**labels, "dense": "dense PyTorch", "products": "bare products"},
        "memory_limit_bytes": 3 * 2**29,
        "left_out": {},
        "encoder": [],
        **changed,
    }


def timed(milliseconds: float, mebibytes: float) -> dict[str, Any]:
    return {"step": step(milliseconds), "peak_bytes": mebibytes * 2**20}


def marks(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """Lines by label; crosses have none."""
    return {k: v for k, v in lines(axes).items() if not k.startswith("_")}


def crosses(axes: Any) -> list[tuple[str, float]]:
    """Colour and N of each, from the top."""
    found = [x for x in axes.lines if x.get_marker() == "x"]
    found.sort(key=lambda x: -x.get_ydata()[0])
    return [(x.get_color(), x.get_xdata()[0]) for x in found]


def measured_heights(line: Any) -> list[float]:
    return [] if line.get_marker() == "x" else list(line.get_ydata())


def test_a_line_for_each_provider_and_a_cross_where_memory_ran_out(drawn: Any) -> None:
    out, slow = {"skipped": "out of memory"}, {"skipped": "took 61 s"}
    figure = drawn(
        suite(
            shape(64, grainrank=timed(4, 2), dense=out, chunked=slow, open_clip=out),
            shape(32, grainrank=timed(1, 1), dense=timed(2, 9), chunked=timed(3, 2), open_clip=out),
        )
    )
    time, memory = figure.axes
    assert marks(time) == {
        "grainrank": [(32, 1.0), (64, 4.0)],
        "dense PyTorch": [(32, 2.0)],
        "chunks": [(32, 3.0)],
        "open_clip": [],
    }
    assert marks(memory) == {
        "grainrank": [(32, 1.0), (64, 2.0)],
        "dense PyTorch": [(32, 9.0)],
        "chunks": [(32, 2.0)],
        "open_clip": [],
    }
    colours = {line.get_label(): line.get_color() for line in time.lines}
    assert len({colours[name] for name in marks(time)}) == 4
    for axes in (time, memory):
        assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
        assert sorted(crosses(axes), key=lambda x: x[1]) == [
            (colours["open_clip"], 32), (colours["dense PyTorch"], 64),
        ]  # fmt: skip
        low, high = axes.get_ylim()
        assert all(low < y < 0.9 * high for x in axes.lines for y in measured_heights(x))
    (title,) = figure.texts
    assert title.get_text() == "One training step, A chip, 2 threads, clip loss, float32, D = 8"
    (legend,) = figure.legends
    texts = [x.get_text() for x in legend.get_texts()]
    assert texts == [
        "grainrank",
        "chunks",
        "open_clip",
        "dense PyTorch",
        "out of memory at 1.5 GiB",
    ]


def test_a_row_of_panels_for_each_number_of_features(drawn: Any) -> None:
    narrow = shape(32, grainrank=timed(1, 1))
    wide = {**shape(32, grainrank=timed(5, 6)), "dim": 16}
    figure = drawn(suite(narrow, wide, gpu="A GPU", loss="multi_level"))
    assert [marks(axes)["grainrank"] for axes in figure.axes] == [
        [(32, 1.0)], [(32, 1.0)], [(32, 5.0)], [(32, 6.0)],
    ]  # fmt: skip
    assert [axes.get_title("left") for axes in figure.axes[:3]] == [
        "time of a step, ms, D = 8", "extra memory, MiB, D = 8", "time of a step, ms, D = 16",
    ]  # fmt: skip
    assert figure.texts[0].get_text() == (
        "One training step, A GPU, multi_level loss of 3 levels, float32"
    )


def test_a_suite_without_shapes(capsys: pytest.CaptureFixture[str], written: Any) -> None:
    assert "must hold a measured shape, got none" in refused(capsys, *written(suite()))
    assert "for bench only, got 2 of suite" in refused(capsys, *written(suite(), suite()))


# Demo and evaluate.


def test_an_evaluation_as_its_own_picture(written: Any, tmp_path: Path) -> None:
    from grainrank.evaluation.picture import draw

    found = report()
    assert report_from(json.loads(json.dumps(found.to_dict()))) == found
    ours, theirs = tmp_path / "ours.png", tmp_path / "theirs.png"
    draw(found, theirs)
    assert main(["plot", *written(found.to_dict()), "--out", str(ours)]) == 0
    assert ours.read_bytes() == theirs.read_bytes()


def test_a_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "demo.png"
    assert main(["plot", str(DEMO), "--out", str(picture)]) == 0
    assert capsys.readouterr().out == f"Drawn in {picture}: demo\n"
    assert picture.read_bytes().startswith(PNG)


# What cannot be drawn.


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Its one line."""
    assert main(["plot", *arguments, "--out", "/nowhere/x.png"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("grainrank plot: ")
    assert err.count("\n") == 1
    return err


def test_files_of_nobody(capsys: pytest.CaptureFixture[str], written: Any, tmp_path: Path) -> None:
    mend = "a file that `grainrank bench --out FILE` (or demo, evaluate, benchmarks/suite.py) wrote"
    (broken := tmp_path / "broken").write_text("{")
    (binary := tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for path, expected in (
        (str(tmp_path / "none"), "no such file"),
        (str(tmp_path), "cannot be read"),
        (str(broken), "is not JSON"),
        (str(binary), "cannot be read"),
        (*written({"a": 1}), "is of none of demo, evaluate, bench and the suite"),
        (*written([1]), "is of none of demo, evaluate, bench and the suite"),
    ):
        err = refused(capsys, path)
        assert path in err
        assert expected in err
        assert mend in err


def test_files_that_do_not_go_together(capsys: pytest.CaptureFixture[str], written: Any) -> None:
    found = report().to_dict()
    mixed = refused(capsys, *written(bench(), found))
    assert "must be of one subcommand, got bench, evaluate" in mixed
    assert "for bench only, got 2 of evaluate" in refused(capsys, *written(found, found))


def test_nothing_timed_and_half_a_file(capsys: pytest.CaptureFixture[str], written: Any) -> None:
    assert "must hold a timed shape, got none; run bench" in refused(capsys, *written(bench()))
    half = {key: {} for key in files.KEYS["demo"]}
    assert "not all that a file of demo holds" in refused(capsys, *written(half))


def test_nowhere_to_write(capsys: pytest.CaptureFixture[str], written: Any) -> None:
    (path,) = written(bench(shape(8, grainrank=step(1.0, 1.0))))
    assert "No such file or directory: '/nowhere/x.png'" in refused(capsys, path)


def test_without_matplotlib(
    capsys: pytest.CaptureFixture[str], written: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for found in (bench(shape(8, grainrank=step(1.0))), report().to_dict()):
        err = refused(capsys, *written(found))
        assert err == "grainrank plot: plot needs matplotlib: pip install 'grainrank[plot]'\n"
