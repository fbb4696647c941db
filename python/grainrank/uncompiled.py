"""What `torch.compile` leaves out of its graphs: results whose sizes depend on the data, kernels
that no operator wraps, communication.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar, cast

import torch

P = ParamSpec("P")
T = TypeVar("T")


def uncompiled(function: Callable[P, T]) -> Callable[P, T]:
    """The function, where a graph ends; Dynamo is imported only where it traces already."""
    # `torch.compiler.disable` imports Dynamo at once.
    apart = cast(
        Callable[P, T], getattr(torch, "_disable_dynamo", torch.compiler.disable)(function)
    )

    @functools.wraps(function)
    def call(*args: P.args, **options: P.kwargs) -> T:
        if torch.compiler.is_compiling():
            return apart(*args, **options)
        return function(*args, **options)

    return call
