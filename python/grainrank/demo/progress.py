"""Progress of the training runs, on the standard error."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator

import torch


@contextlib.contextmanager
def progress(title: str, total: int) -> Iterator[Callable[[], None]]:
    """Gives a callable for each of `total` steps, from any thread: a bar on a terminal (with
    `rich`), a plain line for each tenth elsewhere, nothing on a rank other than 0.
    """
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_rank() != 0:
        yield lambda: None
        return
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.progress import Progress
        except ModuleNotFoundError:
            pass
        else:
            with Progress(console=Console(stderr=True)) as bar:
                task = bar.add_task(title, total=total)
                yield lambda: bar.advance(task)
            return
    yield _plain(title, total)


def _plain(title: str, total: int) -> Callable[[], None]:
    start = time.monotonic()
    lock = threading.Lock()
    done = 0

    def step() -> None:
        nonlocal done
        with lock:
            done += 1
            if done * 10 // total > (done - 1) * 10 // total:
                seconds = time.monotonic() - start
                line = f"{title}: {100 * done // total}% ({done} of {total} steps, {seconds:.0f} s)"
                print(line, file=sys.stderr, flush=True)

    return step
