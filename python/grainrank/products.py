"""Matrix products whose operands are narrower than the result."""

from __future__ import annotations

import torch
from torch import Tensor


def product_(out: Tensor, a: Tensor, b: Tensor, add: Tensor | None = None) -> None:
    """`out = a @ b + add`, summed in the dtype of `out`; `add` may be `out` itself."""
    if a.dtype == out.dtype:
        if add is None:
            torch.mm(a, b, out=out)
        else:
            torch.addmm(add, a, b, out=out)
    elif out.device.type == "cuda" and torch.version.hip is None:
        if add is None:
            torch.ops.aten.mm.dtype_out(a, b, out.dtype, out=out)
        else:
            torch.ops.aten.addmm.dtype_out(add, a, b, out.dtype, out=out)
    else:  # no such product there: widening the operands gives the same, more slowly
        product_(out, a.to(out.dtype), b.to(out.dtype), add)
