"""Rounding to short float formats by a search among all their values: slow, and independent."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt

Format = Literal["f16", "bf16", "tf32"]
_INFINITY = {"f16": 0x7C00, "bf16": 0x7F80, "tf32": 0x7F80 << 3}  # tf32: without its 13 zeros
_NAN = 0x7FFF


def decode(bits: npt.NDArray[np.integer], to: Format) -> npt.NDArray[np.float64]:
    if to == "f16":
        return bits.astype(np.uint16).view(np.float16).astype(np.float64)
    shift = 16 if to == "bf16" else 13
    return (bits.astype(np.uint32) << shift).view(np.float32).astype(np.float64)


def nearest(
    x: npt.ArrayLike, to: Format, ties: Literal["even", "away", "zero"] = "even"
) -> npt.NDArray[np.uint32]:
    """The bits of the value next to each finite or infinite x; NaN has the bits 0x7fff.

    ties: where two are as near; "zero" takes the one nearer to zero whether there is a tie or not.
    """
    x = np.asarray(x, np.float64)
    infinity = _INFINITY[to]
    values = decode(np.arange(infinity + 1), to)
    values[-1] = 2 * 2.0 ** np.floor(np.log2(values[-2]))  # where infinity would lie
    with np.errstate(invalid="ignore"):
        magnitude = np.abs(x)
        inside = np.where(magnitude < values[-1], magnitude, 0)
        low = np.searchsorted(values, inside, "right") - 1
        below, above = inside - values[low], values[low + 1] - inside
    up = (above < below) | ((above == below) & ((ties == "away") | (low % 2 == 1)))
    found = low + (up & (ties != "zero"))
    beyond = infinity - (ties == "zero")  # a finite value is not rounded up to infinity
    found = np.where(magnitude < values[-1], found, np.where(np.isinf(x), infinity, beyond))
    sign_bit = 0x40000 if to == "tf32" else 0x8000
    signed = found | np.where(np.signbit(x), sign_bit, 0)
    return np.where(np.isnan(x), _NAN, signed).astype(np.uint32)
