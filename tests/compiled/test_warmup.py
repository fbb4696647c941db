"""`warmup` compiles all that a step needs, and runs none of it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from ptxsim.driver import use
from ptxsim.kernel import Kernel

import grainrank
from grainrank.testing import Shape, make_inputs

triton = pytest.importorskip("triton")


def test_warmup(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = make_inputs(Shape(48, 80, 24, 3), torch.bfloat16)
    loss = functools.partial(
        grainrank.multi_level_ranking_loss, temperature=0.1, backend="triton", product="fused"
    )
    compiled: list[str] = []
    launched: list[Kernel] = []
    launch = Kernel.launch

    def counted(self: Kernel, *arguments: Any) -> None:
        launched.append(self)
        launch(self, *arguments)

    monkeypatch.setattr(Kernel, "launch", counted)
    with triton.knobs.compilation.scope():
        triton.knobs.compilation.listener = lambda **given: compiled.append(given["src"].name)
        with use(80, edit=str):  # a device of its own: nothing is compiled for it yet
            grainrank.warmup(loss, *inputs[:2], inputs.levels)
            assert set(compiled) >= {"row_norms", "level_tables", "gradient_block", "finish_rows"}
            assert launched == []
            compiled.clear()
            q, c = (x.clone().requires_grad_() for x in inputs[:2])
            loss(q, c, inputs.levels).backward()
            assert compiled == []
            assert len(launched) > 0
