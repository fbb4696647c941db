"""Checks of what a user passes.

Each error names the argument, what was expected, what came and the mend.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LEVEL = 15
MAX_ROWS = 2**31 - 1  # what the passes number queries and candidates in
MAX_SCALE = 1e20  # of logits: they stay far from what an empty level holds
FLOAT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
INTEGER_DTYPES = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8)


def check_tensor(name: str, value: object) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(value).__name__}; "
            f"convert it with torch.as_tensor({name})"
        )
    if value.layout != torch.strided:
        raise TypeError(
            f"{name} must be a dense tensor, got layout {value.layout}; "
            f"convert it with {name}.to_dense()"
        )
    return value


def check_floats(name: str, value: object) -> Tensor:
    tensor = check_tensor(name, value)
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, got {tensor.dtype}; "
            f"convert it with {name}.float()"
        )
    return tensor


def check_integers(name: str, value: object, shape: str, dims: int) -> Tensor:
    """An integer tensor with `dims` dimensions; `shape` is how the message writes them."""
    tensor = check_tensor(name, value)
    if tensor.dtype not in INTEGER_DTYPES:
        raise TypeError(
            f"{name} must hold integers, got dtype {tensor.dtype}; "
            f"number the labels first and pass them as torch.int64"
        )
    if tensor.dim() != dims:
        mend = f"; pass {name}[:, None] for a single key" if (tensor.dim(), dims) == (1, 2) else ""
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}{mend}")
    return tensor


def check_length(name: str, tensor: Tensor, expected: int, letter: str, of: str) -> None:
    if tensor.shape[0] != expected:
        raise ValueError(
            f"{name} must have {letter} = {expected} rows, one for each row of {of}, "
            f"got {tensor.shape[0]}"
        )


def check_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(
            f"{name} is on {tensor.device}, but queries are on {device}; "
            f"move it with {name}.to(queries.device)"
        )


def check_embeddings(
    queries: object, candidates: object, *, may_be_empty: bool = False
) -> tuple[Tensor, Tensor]:
    """Queries `[N, D]` and candidates `[M, D]` of one floating dtype on one device.

    Under autocast, tensors of two floating dtypes are both read in the wider one, which is exact.
    """
    q, c = check_tensor("queries", queries), check_tensor("candidates", candidates)
    for name, tensor, shape in (("queries", q, "[N, D]"), ("candidates", c, "[M, D]")):
        check_floats(name, tensor)
        if tensor.dim() != 2:
            raise ValueError(
                f"{name} must have shape {shape}, got {tuple(tensor.shape)}; "
                f"flatten all leading dimensions into one"
            )
        if (tensor.shape[0] == 0 and not may_be_empty) or tensor.shape[1] == 0:
            raise ValueError(
                f"{name} must have at least one row and one feature, got {tuple(tensor.shape)}; "
                f"skip the step for an empty batch"
            )
        if tensor.shape[0] > MAX_ROWS:
            raise ValueError(
                f"{name} must have fewer than 2^31 rows, got {tensor.shape[0]}; "
                f"pass some of them at a time"
            )
    if q.shape[1] != c.shape[1]:
        raise ValueError(
            f"candidates must have D = {q.shape[1]} features like queries, got {c.shape[1]}; "
            f"project both into the same space"
        )
    check_device("candidates", c, q.device)
    if q.dtype != c.dtype:
        if not torch.is_autocast_enabled(q.device.type):
            raise TypeError(
                f"candidates must have the dtype of queries, {q.dtype}, got {c.dtype}; "
                f"convert one of them, or run under torch.autocast"
            )
        wider = torch.promote_types(q.dtype, c.dtype)
        q, c = q.to(wider), c.to(wider)
    return q.resolve_neg(), c.resolve_neg()  # a negated view holds other numbers than it shows


def check_finite(
    name: str,
    tensor: Tensor,
    mend: str = "; look at the encoder's output, or pass nan='propagate'",
) -> None:
    """Raises for the first row that holds a NaN or an infinity. Reads the data."""
    finite = torch.isfinite(tensor).all(dim=1)
    if not bool(finite.all()):
        row = int(torch.nonzero(~finite)[0])
        raise ValueError(f"{name} must be finite, got NaN or infinity in row {row}{mend}")


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of logits, tables and reductions: float64 for float64 inputs, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_scale(
    temperature: float | Tensor | None, logit_scale: float | Tensor | None, like: Tensor
) -> Tensor:
    """The factor of the logits as a 0-d tensor of the accumulation dtype; differentiable."""
    if (temperature is None) == (logit_scale is None):
        state = "neither" if temperature is None else "both"
        raise ValueError(
            f"exactly one of temperature and logit_scale must be given, got {state}; "
            f"logits are similarity / temperature, or similarity * logit_scale"
        )
    name = "logit_scale" if temperature is None else "temperature"
    value = logit_scale if temperature is None else temperature
    dtype = accumulation_dtype(like.dtype)
    if isinstance(value, Tensor):
        scale = _scalar_tensor(name, value, dtype, like.device)
        return scale if temperature is None else 1.0 / scale
    number = check_number(name, value, or_tensor=True)
    number = number if temperature is None else 1.0 / number
    if number > MAX_SCALE:
        raise ValueError(
            f"{name} must give a logit scale of at most {MAX_SCALE:g}, got {value}, a scale of "
            f"{number:g}; logits near 1e30 would be taken for those of an empty level"
        )
    return torch.full((), number, dtype=dtype, device=like.device)


def check_scalar(name: str, value: object, like: Tensor) -> Tensor:
    """A number or a tensor with one element as a 0-d tensor like `like`; differentiable."""
    if isinstance(value, Tensor):
        return _scalar_tensor(name, value, like.dtype, like.device)
    number = check_number(name, value, low=-math.inf, or_tensor=True)
    if abs(number) > torch.finfo(like.dtype).max:
        raise ValueError(f"{name} must be a number that {like.dtype} holds, got {value}")
    return torch.full_like(like, number)


def _scalar_tensor(name: str, value: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if value.numel() != 1:
        raise ValueError(
            f"{name} must be a number or a tensor with one element, got shape {tuple(value.shape)}"
        )
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be a floating tensor, got {value.dtype}")
    check_device(name, value, device)
    return value.reshape(()).to(dtype)


def check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        allowed = ", ".join(repr(c) for c in choices)
        raise ValueError(f"{name} must be one of {allowed}, got {value!r}")


def check_count(name: str, value: object, what: str = "an integer") -> int:
    """An integer of 1 or more; `what` it is."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be {what} of 1 or more, got {value!r}")
    return value


def check_workspace(workspace_mb: float | None) -> float:
    """The bound as the operators take it, 0 for the default."""
    if workspace_mb is None:
        return 0.0
    if isinstance(workspace_mb, bool) or not isinstance(workspace_mb, (int, float)):
        raise TypeError(f"workspace_mb must be a number, got {type(workspace_mb).__name__}")
    if not (math.isfinite(workspace_mb) and workspace_mb > 0):
        raise ValueError(f"workspace_mb must be positive and finite, got {workspace_mb}")
    return float(workspace_mb)


def check_skip_below(skip_below: float | None) -> float:
    """A share, 0 for None."""
    if skip_below is None:
        return 0.0
    share = check_number("skip_below", skip_below)
    if share >= 1:
        raise ValueError(
            f"skip_below must be below 1, a share of the largest gradient of a logit, got {share}"
        )
    return share


def check_numbers(name: str, values: object, *, positive: bool = False) -> Tensor:
    """Numbers, finite and not negative (`positive`: nor 0), as a tensor; of a tensor only the dtype
    is looked at.
    """
    if isinstance(values, Tensor):
        if not values.dtype.is_floating_point:
            raise TypeError(f"{name} must be a floating tensor, got {values.dtype}")
        return values
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(
            f"{name} must be a sequence of numbers, a tensor or None, got {type(values).__name__}"
        )
    if any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in values):
        raise TypeError(f"{name} must hold numbers, got {list(values)!r}")
    if any(not 0 <= x < math.inf or (positive and x == 0) for x in values):
        sign = "positive" if positive else "not negative"
        raise ValueError(f"{name} must be finite and {sign}, got {list(values)}")
    return torch.tensor(values, dtype=torch.float64)


def constants(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Numbers on a device, not to be written to: copied there once, not in every step."""
    if torch.compiler.is_compiling():
        return torch.tensor(values, dtype=dtype, device=device)
    return _kept(values, dtype, device)


@functools.lru_cache(maxsize=256)
def _kept(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)


def check_number(name: str, value: object, low: float = 0.0, *, or_tensor: bool = False) -> float:
    """A finite number above `low`; `or_tensor`: where a tensor would have been as good."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        kind = "a number or a 0-d tensor" if or_tensor else "a number"
        raise TypeError(f"{name} must be {kind}, got {type(value).__name__}")
    if not (math.isfinite(value) and value > low):
        above = "positive and " if low == 0 else f"above {low:g} and " if low > -math.inf else ""
        raise ValueError(f"{name} must be {above}finite, got {value}")
    return float(value)


def check_dims(
    dims: Sequence[int] | None, weights: Sequence[float] | None, features: int
) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Prefix lengths in ascending order, () for all features, and their weights."""
    if dims is None:
        if weights is not None:
            raise ValueError("matryoshka_weights needs matryoshka_dims, got None; pass both")
        return (), (1.0,)
    if not isinstance(dims, Sequence) or any(
        isinstance(d, bool) or not isinstance(d, int) for d in dims
    ):
        raise TypeError(f"matryoshka_dims must be a sequence of ints, got {dims!r}")
    if len(dims) == 0 or len(set(dims)) != len(dims) or not all(1 <= d <= features for d in dims):
        raise ValueError(
            f"matryoshka_dims must be different lengths in 1..D = 1..{features}, got {list(dims)}"
        )
    given = [1.0] * len(dims) if weights is None else check_numbers("matryoshka_weights", weights)
    if len(given) != len(dims):
        raise ValueError(
            f"matryoshka_weights must have one number for each of the {len(dims)} "
            f"matryoshka_dims, got {len(given)}"
        )
    pairs = sorted(zip(dims, map(float, given), strict=True))
    return tuple(d for d, _ in pairs), tuple(w for _, w in pairs)


def check_memory(
    memory: object, candidates: Tensor, *, may_be_empty: bool = False
) -> Tensor | None:
    """`[Q, D]`, without gradient; None where there is nothing in it."""
    if memory is None:
        return None
    tensor = check_tensor("memory", memory)
    if tensor.dim() != 2 or tensor.shape[1] != candidates.shape[1]:
        raise ValueError(
            f"memory must have shape [Q, D] = [Q, {candidates.shape[1]}], got {tuple(tensor.shape)}"
        )
    if tensor.dtype not in FLOAT_DTYPES:
        raise TypeError(f"memory must be floating, got {tensor.dtype}")
    if tensor.shape[0] + candidates.shape[0] > MAX_ROWS:
        raise ValueError(
            f"memory must leave fewer than 2^31 candidates in all, got {tensor.shape[0]} rows "
            f"behind {candidates.shape[0]} candidates; keep a smaller queue"
        )
    check_device("memory", tensor, candidates.device)
    return tensor.detach() if tensor.shape[0] > 0 or may_be_empty else None
