"""Peak memory of a step, and the memory that is free."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

_EXIT_SECONDS = 10
OUT_OF_MEMORY = "out of memory"
# What PyTorch's allocators and the C++ library say; torch 2.13 has no type of its own for a CPU.
_REFUSED = ("can't allocate memory", "not enough memory", "std::bad_alloc", "out of memory")
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def free_bytes(device: torch.device) -> int | None:
    """Memory that a step could still take, or None where nothing says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = [x for x in (_available(), _left_to_the_container()) if x is not None]
    return min(free, default=None)


def _available() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return found[0] if found else None


def _left_to_the_container(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    try:
        limit, used = (
            (folder / name).read_text(encoding="utf-8").strip()
            for name in ("memory.max", "memory.current")
        )
    except OSError:
        return None
    return None if limit == "max" else max(0, int(limit) - int(used))


def _status(field: str) -> int:
    for line in _STATUS.read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def peak_of(run: Callable[[], Any]) -> int:
    """Bytes that a call takes over what its process held before; Linux.

    Run it on a small input before, so that libraries and their buffers are loaded.
    """
    _CLEAR.write_text("5", encoding="utf-8")  # the high-water mark is what is resident
    before = _status("VmRSS")
    run()
    return _status("VmHWM") - before


def peak_on_gpu(run: Callable[[], Any]) -> int:
    """The same of PyTorch's allocator."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def limit_memory(more: int) -> None:
    """This process may allocate `more` bytes over what it has now, and no further; Linux.

    What is over the limit is refused as on a machine whose memory is full, before it is used.
    """
    import resource  # is missing on Windows

    most = _status("VmData") + more
    resource.setrlimit(resource.RLIMIT_DATA, (most, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def ran_out(error: BaseException) -> bool:
    """Whether memory that was asked for was refused."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(x in str(error).lower() for x in _REFUSED)


def can_measure() -> bool:
    """Whether `peak_apart` runs on this system."""
    return os.access(_CLEAR, os.W_OK)


def give_back_freed() -> None:
    """What was freed goes back to the system, where it is the C library's to give."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def peak_apart(work: Callable[..., int], *given: Any) -> int:
    """`work(*given)`, a function of a module, in a new process that does nothing else.

    Raises:
        MemoryError: memory that `work` asked for was refused.
        RuntimeError: `work` raised another error, or the process was killed.
        OSError: there is no such process on this system.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["grainrank.bench.measure"])  # imported once, then forked
    ours, theirs = context.Pipe(duplex=False)
    given = (theirs, torch.get_num_threads(), work, given)
    process = context.Process(target=_answer, args=given, daemon=True)
    process.start()
    theirs.close()
    try:
        answer = ours.recv()
        process.join(_EXIT_SECONDS)
    except EOFError:
        process.join()
        code = process.exitcode or 0
        if code < 0:
            raise RuntimeError(f"its process was killed by signal {-code}") from None
        raise ChildProcessError(f"its process ended with {code} and no answer") from None
    finally:
        process.kill()  # if it is still there
        process.join()
        ours.close()
    if isinstance(answer, Exception):
        raise answer
    return int(answer)


def _answer(to: Any, threads: int, work: Callable[..., int], given: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one
    torch.set_num_threads(threads)
    try:
        to.send(work(*given))
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        to.send(MemoryError(text) if ran_out(error) else RuntimeError(text))
