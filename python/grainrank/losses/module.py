"""What the loss modules share: they hold the options of a loss function."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from ..levels import LevelSource
from .options import ScaledOptions

#: The options that scale the logits; exactly one of them.
SCALES = ("temperature", "logit_scale", "level_temperatures")


class LossModule(nn.Module):
    """A loss function and its options, given once; options that are an `nn.Parameter` are learned.

    Options given with a call replace the module's for this call, a scale (`temperature`,
    `logit_scale`, `level_temperatures`) whichever form of scale the module has.

    Raises:
        TypeError: an option that the function does not have.
        ValueError: more than one form of scale.
    """

    #: The loss function.
    function: ClassVar[Callable[..., Any]]
    #: The options that it shares with others.
    shared: ClassVar[Any] = ScaledOptions

    def __init__(self, **options: Any) -> None:
        super().__init__()
        parameters = inspect.signature(type(self).function).parameters.values()
        own = [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]
        allowed = [*own, *self.shared.__annotations__]
        for name in options:
            if name not in allowed:
                raise TypeError(
                    f"{type(self).__name__} has no option {name!r}; it has {', '.join(allowed)}"
                )
        given = [name for name in SCALES if options.get(name) is not None]
        if len(given) > 1:
            raise ValueError(
                f"exactly one of temperature and logit_scale must be given, got both "
                f"{given[0]} and {given[1]}; "
                f"logits are similarity / temperature, or similarity * logit_scale"
            )
        self._options = tuple(options)
        for name, value in options.items():
            setattr(self, name, value)

    def forward(
        self,
        queries: Tensor,
        candidates: Tensor,
        levels: LevelSource | None = None,
        **options: Any,
    ) -> Any:
        """The loss, of queries `[N, D]` and candidates `[M, D]`."""
        return type(self).function(queries, candidates, levels, **self._with(options))

    @property
    def has_scale(self) -> bool:
        """Whether it was given a scale; else every call needs one."""
        return any(getattr(self, name, None) is not None for name in SCALES)

    def _with(self, options: dict[str, Any]) -> dict[str, Any]:
        """The module's options, and those of a call."""
        own = {name: getattr(self, name) for name in self._options}
        if any(name in options for name in SCALES):
            own = {name: value for name, value in own.items() if name not in SCALES}
        return own | options

    def extra_repr(self) -> str:
        shown = {name: getattr(self, name) for name in self._options}
        return ", ".join(
            f"{name}={value if isinstance(value, Tensor) else repr(value)}"
            for name, value in shown.items()
            if value is not None
        )
