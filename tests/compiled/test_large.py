"""Blocks of more than 2^31 elements: every offset that is a product has 64 bits."""

from __future__ import annotations

import mmap

import numpy as np
import pytest
import torch
from ptxsim.driver import use
from torch import Tensor

from grainrank import GrainKeys
from grainrank.batch import Batch
from grainrank.row_blocks import Block, Channel
from grainrank.table_sets import TableGradientSet, TableSet
from grainrank.testing import Shape, make_inputs

triton_passes = pytest.importorskip("grainrank.triton_passes")

ROWS = 3
STRIDE = 2**30 + 64  # elements from row to row


def sparse(rows: int) -> Tensor:
    """bfloat16 rows far apart, in memory of which only what is touched is there."""
    size = 2 * ((rows - 1) * STRIDE + 128)
    memory = np.frombuffer(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE), dtype=np.int16)
    return torch.from_numpy(memory).view(torch.bfloat16).as_strided((rows, 65), (STRIDE, 1))


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_gradient_block() -> None:
    inputs = make_inputs(Shape(ROWS, 65, 24, 3), torch.bfloat16)
    levels = GrainKeys(inputs.query_keys, inputs.candidate_keys)
    scale = torch.tensor(5.0)
    batch = Batch(*inputs[:2], scale, levels, normalize=False, product="fused")
    tables = TableSet.empty(
        ROWS, levels.max_level + 1, dtype=torch.float32, device=scale.device, full=False
    )
    d_tables = TableGradientSet(lse=torch.ones_like(tables.lse))
    results = []
    for gradient in (torch.zeros(ROWS, 65, dtype=torch.bfloat16), sparse(ROWS)):
        block = Block(None, gradient, *inputs[:2], 0, 0, None, None, None)
        with use(80):
            passes = triton_passes.TritonPasses(batch)
            passes.tables(block, 0, tables, None)
            passes.gradients_(block, [Channel(tables, d_tables)], None, None)
        results.append(gradient.clone())
    assert (ROWS - 1) * STRIDE > 2**31
    assert torch.equal(*results)
    assert results[0].abs().sum() > 0
