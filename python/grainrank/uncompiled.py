"""What `torch.compile` leaves out of its graphs: results whose sizes depend on the data, kernels
that no operator wraps, communication.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """`torch.compiler.disable`, but that imports Dynamo at once."""
    disable = getattr(torch, "_disable_dynamo", torch.compiler.disable)
    return cast(Callable[P, T], disable(function))
