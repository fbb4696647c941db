"""Loads a kernel from PTX and launches it on arrays in host memory."""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .build import build
from .emission import KernelLayout, ParameterPlace, translate_module
from .errors import SimulatorError

_MESSAGE_BYTES = 2048
# A library has the state of one launch, whichever of its kernels runs.
_locks: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
_translate = functools.lru_cache(maxsize=16)(translate_module)  # of one module, many kernels
Argument = "Buffer | npt.NDArray[np.generic] | int | float"


class _BufferSpec(ctypes.Structure):
    _fields_ = (
        ("address", ctypes.c_uint64),
        ("bytes", ctypes.c_uint64),
        ("writable", ctypes.c_int),
        ("name", ctypes.c_char_p),
    )


class _LaunchSpec(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("dynamic_shared_bytes", ctypes.c_uint),
        ("n_buffers", ctypes.c_uint),
        ("parameters", ctypes.c_char_p),
        ("buffers", ctypes.POINTER(_BufferSpec)),
        ("seed", ctypes.c_uint64),
        ("races", ctypes.c_int),
        ("initialised", ctypes.c_int),
        ("message", ctypes.c_char_p),
        ("message_bytes", ctypes.c_uint64),
        ("traffic", ctypes.c_void_p),
    )


@dataclass(frozen=True)
class Options:
    """How a launch is run.

    seed: 0 runs the threads in turn and lets each cp.async land when it is waited for; any other
    number draws the order of the threads and of the copies.
    races, initialised: whether races and reads of uninitialised shared memory are looked for.
    """

    seed: int = 0
    races: bool = True
    initialised: bool = True


@dataclass(frozen=True)
class Buffer:
    """Memory that a kernel may touch: only what is listed here."""

    address: int
    bytes: int
    name: str
    writable: bool = True


@dataclass(frozen=True)
class Launch:
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    shared_bytes: int = 0


def _padded(sizes: Sequence[int]) -> tuple[int, int, int]:
    x, y, z = (*sizes, 1, 1)[:3]
    return x, y, z


class Kernel:
    """One kernel of a PTX module.

    name: which one, where there are several. portable: whether the threads switch by ucontext,
    as they do on machines other than x86-64.
    """

    def __init__(self, ptx: str, name: str | None = None, portable: bool = False) -> None:
        translation = _translate(ptx)
        found = [k for k in translation.kernels if name is None or k.name == name]
        if len(found) != 1:
            names = ", ".join(k.name for k in translation.kernels) or "none"
            raise SimulatorError(f"expected one kernel named {name!r}; the PTX has {names}")
        self.layout: KernelLayout = found[0]
        path = build(translation.source, portable)
        self._run = getattr(ctypes.CDLL(str(path)), self.layout.entry_point)
        self._lock = _locks[path]

    def __call__(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        *arguments: Buffer | npt.NDArray[np.generic] | int | float,
        shared_bytes: int = 0,
        options: Options = Options(),
    ) -> None:
        """Launches; raises SimulatorError. An array must be contiguous; it may be written unless
        NumPy forbids it."""
        places = self.layout.parameters
        if len(arguments) != len(places):
            raise SimulatorError(
                f"{self.layout.name} takes {len(places)} arguments, got {len(arguments)}"
            )
        buffers: list[Buffer] = []
        values: list[bytes] = []
        for place, argument in zip(places, arguments, strict=True):
            if isinstance(argument, np.ndarray):
                argument = Buffer(
                    argument.ctypes.data, argument.nbytes, place.name, argument.flags.writeable
                )
            if isinstance(argument, Buffer):
                buffers.append(argument)
                argument = argument.address
            values.append(_pack(place, argument))
        launch = Launch(_padded(grid), _padded(block), shared_bytes)
        self.launch(launch, values, buffers, options)

    def launch(
        self,
        launch: Launch,
        values: Sequence[bytes],
        buffers: Sequence[Buffer],
        options: Options,
    ) -> None:
        """Launches with parameters that are bytes already; those left out are zero."""
        parameters = bytearray(self.layout.parameter_bytes + 8)
        if len(values) > len(self.layout.parameters):
            raise SimulatorError(
                f"{self.layout.name} takes {len(self.layout.parameters)} parameters, "
                f"got {len(values)}"
            )
        for place, value in zip(self.layout.parameters, values, strict=False):
            if len(value) != place.bytes:
                raise SimulatorError(
                    f"parameter {place.name} of {self.layout.name} has {place.bytes} bytes, "
                    f"got {len(value)}"
                )
            parameters[place.offset : place.offset + place.bytes] = value
        message = ctypes.create_string_buffer(_MESSAGE_BYTES)
        table = (_BufferSpec * len(buffers))(
            *(_BufferSpec(b.address, b.bytes, b.writable, b.name.encode()) for b in buffers)
        )
        spec = _LaunchSpec(
            (ctypes.c_uint * 3)(*launch.grid),
            (ctypes.c_uint * 3)(*launch.block),
            launch.shared_bytes,
            len(buffers),
            bytes(parameters),
            table,
            options.seed,
            options.races,
            options.initialised,
            ctypes.cast(message, ctypes.c_char_p),
            _MESSAGE_BYTES,
            None,
        )
        with self._lock:
            failed = self._run(ctypes.byref(spec))
        if failed:
            raise SimulatorError(f"{self.layout.name}: {message.value.decode()}")


def _pack(place: ParameterPlace, value: int | float) -> bytes:
    if isinstance(value, float):
        return struct.pack("<f" if place.bytes == 4 else "<d", value)
    return (value % (1 << 8 * place.bytes)).to_bytes(place.bytes, "little")
