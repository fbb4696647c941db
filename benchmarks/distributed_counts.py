"""Bytes that a rank sends in one training step, and its peak memory, counted on gloo processes.

`python benchmarks/distributed_counts.py` runs steps of the multi-level loss on 2, 3 and 4 processes
of this machine, counts, checks that the formulas give the same, and writes
benchmarks/results/distributed-counts.json with their values for 8, 64 and 512 ranks, for
docs/distributed.md.

Bytes are what a rank has to send by any algorithm that passes each part on from rank to rank: of an
all-gather and of a reduce-scatter W - 1 parts, of an all-to-all the parts of the others. Memory is
what the step allocates at once, over its inputs (from torch's profiler). From 3 to 4 ranks a gather
grows by what it grows by for each further rank. In a ring the embeddings do not grow, and hide what
does, tables and numbers: that is taken from steps with few features.
"""

from __future__ import annotations

import json
import socket
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.profiler import ProfilerActivity, profile

from grainrank import GrainKeys, multi_level_ranking_loss
from grainrank.machine import machine_header

RESULT = Path(__file__).parent / "results" / "distributed-counts.json"
ROWS, D, K = 1024, 768, 3  # N = M of each rank
LEVELS = K + 1
WORKSPACE_MB = 16.0
HEADER = 30 * 8  # of the handshake
COUNTED, DERIVED = (2, 3, 4), (8, 64, 512)
DIRECTIONS = ("query_to_candidate", "symmetric")
DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


class Setting(NamedTuple):
    direction: str
    transport: str
    dtype: str
    rows: int = ROWS
    features: int = D


FEW = 8  # features
SETTINGS = [
    Setting(direction, transport, dtype)
    for direction in DIRECTIONS
    for transport in ("gather", "ring")
    for dtype in DTYPES
]
NARROW = [setting._replace(features=FEW) for setting in SETTINGS]


def bytes_sent(setting: Setting, world: int) -> dict[str, int]:
    """What a rank sends in a step, by purpose; N = M everywhere, L = K, a learned temperature."""
    n, others = setting.rows, world - 1
    both, ring = setting.direction == "symmetric", setting.transport == "ring"
    candidates = n * setting.features * DTYPES[setting.dtype].itemsize
    keys = n * K * 8
    # Columns that pass by come twice: for the tables, and for the gradients.
    rounds = 2 if ring else 1
    sent = {
        "candidates": rounds * others * candidates,
        "levels": rounds * others * keys,
        # A ring brings the gradients home, too.
        "gradients": (world if ring else others) * n * setting.features * 4,
        "column tables": 0,
        # Handshake; losses and rows, and their gradient, for each side; the temperature's gradient.
        "numbers": others * (HEADER + (2 if both else 1) * 2 * 16 + 8),
    }
    if both:
        # Log-sum-exp, total, count of every column; then log-sum-exp and its gradient to everybody.
        sent["column tables"] = others * n * LEVELS * ((4 + 4 + 8) + (4 + 4))
    return sent


Counts = dict[int, tuple[dict[str, int], int]]  # by W: bytes sent by kind, and peak memory


@contextmanager
def counting(world: int) -> Iterator[Counter[str]]:
    """Counts what the collectives send, by kind."""
    sent: Counter[str] = Counter()

    def size(x: torch.Tensor) -> int:
        return x.numel() * x.element_size()

    def gather(out: Any, x: Any, **rest: Any) -> Any:
        sent["all-gather"] += (world - 1) * size(x)
        return originals["all_gather_single"](out, x, **rest)

    def scatter(out: Any, x: Any, **rest: Any) -> Any:
        sent["reduce-scatter"] += (world - 1) * size(out)
        return originals["reduce_scatter_single"](out, x, **rest)

    def exchange(out: Any, x: Any, *splits: Any, **rest: Any) -> Any:
        own = splits[1][dist.get_rank()] if splits else x.shape[0] // world
        sent["all-to-all"] += size(x) - size(x[:own])
        return originals["all_to_all_single"](out, x, *splits, **rest)

    def pass_on(steps: Any) -> Any:
        sent["point-to-point"] += sum(size(s.tensor) for s in steps if s.op is dist.isend)
        return originals["batch_isend_irecv"](steps)

    wrapped = {
        "all_gather_single": gather,
        "reduce_scatter_single": scatter,
        "all_to_all_single": exchange,
        "batch_isend_irecv": pass_on,
    }
    originals = {name: getattr(dist, name) for name in wrapped}
    with mock.patch.multiple(dist, **wrapped):
        yield sent


def _step(setting: Setting, rank: int, group: Any) -> Any:
    generator = torch.Generator().manual_seed(rank)
    shape = 2, setting.rows, setting.features
    q, c = torch.randn(shape, generator=generator).to(DTYPES[setting.dtype]).unbind()
    q.requires_grad_(), c.requires_grad_()
    keys = torch.randint(8, (2, setting.rows, K), generator=generator)
    scale = torch.tensor(10.0, requires_grad=True)

    def step() -> None:
        loss = multi_level_ranking_loss(
            q,
            c,
            GrainKeys(keys[0], keys[1]),
            logit_scale=scale,
            direction=setting.direction,  # type: ignore[arg-type]
            transport=setting.transport,  # type: ignore[arg-type]
            workspace_mb=WORKSPACE_MB,
            group=group,
        )
        torch.autograd.grad(loss, [q, c, scale])

    return step


def _peak(step: Any) -> int:
    """Bytes allocated at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    live = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
    return peak


def count_on_rank(
    rank: int, world: int, settings: list[Setting]
) -> list[tuple[dict[str, int], int]]:
    """For each setting the bytes that the rank sends by kind, and its peak memory."""
    results = []
    for setting in settings:
        step = _step(setting, rank, dist.group.WORLD)
        with counting(world) as sent:
            step()
        results.append((dict(sent), _peak(step)))
    return results


def _start(rank: int, world: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    torch.save(count_on_rank(rank, world, SETTINGS + NARROW), Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def _counted(world: int) -> list[tuple[dict[str, int], int]]:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_start, (world, port, folder), nprocs=world)  # type: ignore[no-untyped-call]
        of_ranks = [torch.load(Path(folder) / f"{rank}.pt") for rank in range(world)]
    # The most of any rank.
    return [
        (
            max((r[0] for r in of_setting), key=lambda s: sum(s.values())),
            max(r[1] for r in of_setting),
        )
        for of_setting in zip(*of_ranks, strict=True)
    ]


def _growth(counts: Counts) -> int:
    """Of the peak, from the last rank but one to the last."""
    before, last = sorted(counts)[-2:]
    return counts[last][1] - counts[before][1]


def derive(setting: Setting, counts: Counts, narrow: Counts) -> dict[str, Any]:
    """The formulas' values, and the peak that grows with every rank."""
    for world, (sent, _) in counts.items():
        if sum(sent.values()) != sum(bytes_sent(setting, world).values()):
            raise ValueError(f"{setting} on {world}: {sent}, not {bytes_sent(setting, world)}")
    last = max(counts)
    slope = max(0, _growth(narrow if setting.transport == "ring" else counts))
    return {
        **setting._asdict(),
        "counted": {
            world: {"sent": sent, "peak_bytes": peak} for world, (sent, peak) in counts.items()
        },
        "peak_bytes_for_each_rank": slope,
        "derived": {
            world: {
                "sent": bytes_sent(setting, world),
                "peak_bytes": counts[last][1] + slope * (world - last),
            }
            for world in DERIVED
        },
    }


def main() -> None:
    counted = {world: _counted(world) for world in COUNTED}

    def of(i: int) -> Counts:
        return {world: counted[world][i] for world in COUNTED}

    steps = [derive(s, of(i), of(len(SETTINGS) + i)) for i, s in enumerate(SETTINGS)]
    result = {
        "what": "counted on gloo processes of one machine (2 to 4 ranks), derived beyond",
        "machine": machine_header(),
        "K": K,
        "workspace_mb": WORKSPACE_MB,
        "steps": steps,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
