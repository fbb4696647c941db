"""`grainrank check` finds the wrong conventions, and finds nothing in grainrank's own losses."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import processes
from ranks.conventions import CONVENTIONS, one_process
from torch import Tensor

from grainrank import multi_level_ranking_loss
from grainrank.__main__ import main
from grainrank.check import accuracy
from grainrank.check import processes as own_processes
from grainrank.check.cases import check_own, own_cases
from grainrank.check.encoders import LAYOUTS, Step, spread
from grainrank.check.gradients import Plan, check_gradients, compare
from grainrank.check.table import WIDTH, notes, plain
from grainrank.check.verdicts import Verdict

W = 4
RIGHT = {"C", "E", "L own rows", "L all rows"}
#: Encoders' size and cosine, scale's gradient: what the document states exactly.
EXACT = {
    "A": (1 / W, 1, 1),
    "B": (1, 1, W),
    "P": (W, 1, W),
    "I": (1, 1, W),
    "K all rows": (1 / W, 1, 1),
    **dict.fromkeys(RIGHT, (1, 1, 1)),
}
WORDS = {
    "A": "gathered without their gradient",
    "B": "loss multiplied by W",
    "P": "loss multiplied by the world size",
    "G": "most likely the gathered rows' gradient is lost",
    "I": "summed over ranks",
    "J own rows": "most likely gradients of different samples are added up",
    "J all rows": "most likely gradients of different samples are added up",
    "K own rows": "most likely the gathered rows' gradient is lost",
    "K all rows": "gathered without their gradient",
    "C": "right gradients, but the loss differs between the ranks",
    "E": "",
}


def _of_step(name: str, step: Step, group: Any) -> Tensor:
    return CONVENTIONS[name](step.queries, step.candidates, step.scale, group)


def _alone(step: Step, group: Any) -> Tensor:
    return one_process(step.queries, step.candidates, step.scale)


def _off_on_rank_1(q: Tensor, c: Tensor, scale: Tensor, group: Any) -> Tensor:
    loss: Tensor = multi_level_ranking_loss(q, c, logit_scale=scale, group=group)
    return loss * (1.001 if group is not None and dist.get_rank(group) == 1 else 1)


def _pairs(q: Tensor, c: Tensor, scale: Tensor, group: Any, **options: Any) -> Tensor:
    loss: Tensor = multi_level_ranking_loss(q, c, logit_scale=scale, group=group, **options)
    return loss


def on_rank(rank: int, world: int) -> dict[str, Verdict]:
    group = dist.group.WORLD
    found = {
        name: check_gradients(loss, group, reference=one_process, case=name)
        for name, loss in CONVENTIONS.items()
    }
    check = functools.partial(check_gradients, reference=one_process)
    found["C, global"] = check(CONVENTIONS["C"], group, global_loss=True)
    for name in ("A", "E"):
        found[f"{name}, float32"] = check(CONVENTIONS[name], group, dtype=torch.float32)
        found[f"{name}, fsdp"] = check(CONVENTIONS[name], group, wrapper="fsdp")
        loss = functools.partial(_of_step, name)
        for key, plan in (
            ("micro", Plan(pairs=True, micro_batches=2)),
            ("steps", Plan(pairs=True, steps=3)),
        ):
            found[f"{name}, {key}"] = compare(name, loss, _alone, group, plan)
    found["off"] = check_gradients(_off_on_rank_1, group, layout="uneven")
    for layout in LAYOUTS:
        found[f"pairs, {layout}"] = check_gradients(
            functools.partial(_pairs, direction="symmetric"), group, layout=layout
        )
    return found | {verdict.case: verdict for verdict in check_own(group, "cpu")}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Verdict]]:
    return processes.run(W, on_rank, tmp_path_factory.mktemp("check"))


@pytest.mark.parametrize("name", CONVENTIONS)
def test_conventions(name: str, found: list[dict[str, Verdict]]) -> None:
    verdict = found[0][name]
    assert verdict.ok == (name in RIGHT)
    assert verdict.gradients == ("ok" if name in RIGHT else "WRONG")
    if name in EXACT:
        given = verdict.size, verdict.cosine, verdict.scale
        assert given == pytest.approx(EXACT[name], abs=5e-3)
    else:
        assert verdict.cosine < 0.995
        assert verdict.scale == pytest.approx(1)
    assert WORDS.get(name, "") in verdict.explanation


def test_losses_of_conventions(found: list[dict[str, Verdict]]) -> None:
    """As in the table: A and E 1, B W, C below and above 1, and P that W times."""
    v = found[0]
    losses = {name: (v[name].lowest_loss, v[name].highest_loss, v[name].loss) for name in "ABCEP"}
    assert losses["A"] == losses["E"] == (pytest.approx(1), pytest.approx(1), "ok")
    assert losses["B"] == (pytest.approx(W), pytest.approx(W), "WRONG")
    assert losses["C"][0] < 0.95 < 1.05 < losses["C"][1]
    assert losses["C"][2] == losses["P"][2] == "differs"
    assert losses["P"][:2] == pytest.approx([W * x for x in losses["C"][:2]])


@pytest.mark.parametrize("how", ["float32", "fsdp", "micro", "steps"])
def test_other_plans_tell_right_from_wrong(how: str, found: list[dict[str, Verdict]]) -> None:
    wrong, right = found[0][f"A, {how}"], found[0][f"E, {how}"]
    assert right.ok
    assert (right.size, right.cosine, right.scale) == pytest.approx((1, 1, 1), abs=1e-5)
    assert not wrong.ok
    if how != "steps":
        assert (wrong.size, wrong.cosine) == pytest.approx((1 / W, 1), abs=1e-5)
    else:
        assert wrong.size < 0.9


def test_a_loss_that_differs_is_wrong_where_it_has_to_be_global(
    found: list[dict[str, Verdict]],
) -> None:
    verdict = found[0]["C, global"]
    assert verdict.gradients == "ok"
    assert not verdict.ok


def test_a_small_fault_on_one_rank_is_wrong_on_all(found: list[dict[str, Verdict]]) -> None:
    for of_rank in found:
        assert of_rank["off"].gradients == "WRONG"
        assert of_rank["off"].highest_loss == pytest.approx(1.001)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_pairs_without_levels(layout: str, found: list[dict[str, Verdict]]) -> None:
    assert found[0][f"pairs, {layout}"].ok
    assert found[0][f"pairs, {layout}"].loss == "ok"


@pytest.mark.parametrize("case", [name for name, *_ in own_cases()])
def test_own_losses(case: str, found: list[dict[str, Verdict]]) -> None:
    for of_rank in found:
        assert of_rank[case].ok, of_rank[case]
        assert of_rank[case].loss == "ok"
        assert of_rank[case].global_loss


def test_layouts() -> None:
    sizes = {
        layout: [[s.stop - s.start for s in side] for side in spread(layout, W, False)]
        for layout in LAYOUTS
    }
    assert sizes == {
        "even": [[6, 6, 6, 6], [6, 6, 6, 6]],
        "uneven": [[5, 9, 1, 7], [8, 9, 4, 8]],
        "empty": [[5, 0, 1, 7], [8, 0, 4, 8]],
    }


def _found(rows: list[dict[str, Any]]) -> dict[str, Any]:
    versions = {"grainrank": "1"}
    return {
        "versions": versions, "world_size": W, "device": "cpu", "dtype": "float64", "seconds": 1.0,
        "ok": False, "rows": rows,
    }  # fmt: skip


def test_table_of_everything_fits_a_screen(found: list[dict[str, Verdict]]) -> None:
    own = [found[0][name] for name, *_ in own_cases()]
    whole = _found([verdict.row() for verdict in own])
    lines = [*plain(whole).splitlines(), *notes(whole)]
    assert len(lines) < 40
    assert max(map(len, lines)) <= WIDTH
    assert lines[-1] == f"All {len(own)} ok"


def test_table_explains_each_fault_once(found: list[dict[str, Verdict]]) -> None:
    whole = _found([found[0][name].row() for name in CONVENTIONS])
    text = " ".join(notes(whole))
    assert text.count("gathered without their gradient") == 1
    assert "[A and 1 more]" in text
    assert text.endswith(f"{len(CONVENTIONS) - len(RIGHT)} of {len(CONVENTIONS)} WRONG")
    rows = plain(whole).splitlines()[1:]
    assert [row.split()[-1] for row in rows] == [
        "ok" if name in RIGHT else "WRONG" for name in CONVENTIONS
    ]
    assert rows[0].split() == ["A", "0.25", "1.000", "1.00", "1.00", "WRONG"]


def test_no_numbers_that_json_has_not() -> None:
    nan = float("nan")
    verdict = Verdict("x", nan, nan, nan, nan, nan, "WRONG", "WRONG", True, "")
    row = json.loads(json.dumps(verdict.row(), allow_nan=False))
    assert row["size"] is None
    assert row["verdict"] == "WRONG"
    assert "-" in plain(_found([row]))


# The command


def test_command_on_two_processes() -> None:
    command = [sys.executable, "-m", "grainrank", "check", "--nproc", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["ok"]
    assert found["world_size"] == 2
    assert found["versions"]["torch"] == torch.__version__
    assert [row["case"] for row in found["rows"]] == [name for name, *_ in own_cases()]


@pytest.fixture
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("no_torchrun")
def test_one_process(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "All 6 ok"
    assert max(map(len, lines)) <= WIDTH


@pytest.mark.usefixtures("no_torchrun")
@pytest.mark.parametrize("fault", [1.00001, float("nan")])
def test_fault_in_one_process(
    fault: float, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = accuracy.siglip_loss

    def wrong(*args: Any, backend: Any, **options: Any) -> Tensor:
        loss = right(*args, backend=backend, **options)
        return loss * fault if backend == "auto" else loss

    monkeypatch.setattr(accuracy, "siglip_loss", wrong)
    assert main(["check"]) == 1
    text = capsys.readouterr().out
    (row,) = (line for line in text.splitlines() if line.startswith("siglip, fp32"))
    assert row.endswith("WRONG")
    assert "WRONG: loss: error" in text
    assert main(["check", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    of_nan = found["rows"][-1]["loss_error"] is None
    assert of_nan == (fault != fault)


def _failing(group: Any) -> None:
    if dist.get_rank(group) == 1:
        raise ValueError("no such thing")


def test_error_in_a_process() -> None:
    with pytest.raises(RuntimeError, match=r"(?s)^rank 1: .*ValueError: no such thing$"):
        own_processes.on_processes(2, _failing)


def _sleeping(group: Any) -> None:
    time.sleep(100)


def test_no_process_outlives_its_time(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(own_processes, "TIMEOUT", 2)
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="no result of 2 processes within 2 seconds"):
        own_processes.on_processes(2, _sleeping)
    assert time.monotonic() - start < 20


@pytest.mark.usefixtures("no_torchrun")
def test_errors_end_with_code_two(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    assert main(["check", "--nproc", "2"]) == 2
    assert "--nproc must be torchrun's number of ranks, 3, got 2" in capsys.readouterr().err


def test_a_group_of_one() -> None:
    with pytest.raises(ValueError, match="group must have 2 ranks or more"):
        check_gradients(_pairs, None)
