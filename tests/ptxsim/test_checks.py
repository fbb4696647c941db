"""Small kernels with one fault each: the simulator must find it, and nothing once it is mended."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from .barriers import deletions, search
from .build import compiler
from .errors import SimulatorError
from .kernel import Kernel, Options

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH")

# 2 with a random order of threads, 2 with a random order of warps; 0 runs them in turn.
SEEDS = [0, 1, 2, 3, 4]
THREADS = 64
_DEFAULT = Options()
_MODULE = """
.version 8.4
.target sm_80
.address_size 64
.file 1 "/src/kernel.py"
.file 2 "/src/inlined.py"
.shared .align 16 .b8 tile[256];
"""
# own, mirror: a word of the tile for each thread, in its own place and counted from the end.
_KERNEL = """
.visible .entry {name}(.param .u64 x, .param .u64 y) {{
    .reg .pred %first, %second_warp, %p<4>;
    .reg .b32 %tid, %cta, %own, %mirror, %warp, %r<8>;
    .reg .b64 %x, %y, %x_own, %y_own, %x_mirror, %d<8>;
    mov.u32 %tid, %tid.x;
    mov.u32 %cta, %ctaid.x;
    shr.u32 %warp, %tid, 5;
    setp.eq.u32 %first, %tid, 0;
    setp.eq.u32 %second_warp, %warp, 1;
    ld.param.u64 %x, [x];
    ld.param.u64 %y, [y];
    mul.wide.u32 %d0, %tid, 4;
    add.s64 %x_own, %x, %d0;
    add.s64 %y_own, %y, %d0;
    mov.u32 %r0, %ntid.x;
    sub.u32 %r0, %r0, %tid;
    sub.u32 %r0, %r0, 1;
    mul.wide.u32 %d0, %r0, 4;
    add.s64 %x_mirror, %x, %d0;
    mov.u32 %r1, tile;
    mad.lo.u32 %mirror, %r0, 4, %r1;
    mad.lo.u32 %own, %tid, 4, %r1;
{body}
    ret;
}}
"""
_INITIALISE = "st.shared.b32 [%own], 0; bar.sync 0;"
_COPY = "cp.async.ca.shared.global [%own], [%x_own], 4; cp.async.commit_group;"
_ANY_RACE = r"race on byte \d+ of shared memory with thread \d+ of the same block at kernel.py:1"


@dataclass(frozen=True)
class Fault:
    """`body` with `fault` where `$` stands must fail; with `mended` there it must not."""

    body: str
    fault: str
    mended: str
    match: str
    grid: int = 1
    threads: int = THREADS


FAULTS = {
    # ---- addresses
    "read_behind": Fault(
        "ld.global.b32 %r2, [%x_own+$]; st.global.b32 [%y_own], %r2;", "4", "0",
        r"read_behind: out-of-bounds global read of 4 bytes at byte 256 of buffer 'x' of 256 "
        r"bytes, at kernel.py:1 \(PTX line \d+\), block \(0, 0, 0\), thread 63$",
    ),
    "read_over_the_edge": Fault(
        "@%first ld.global.v2.b32 {%r2, %r3}, [%x+$];", "252", "248",
        "read of 8 bytes at byte 252 of buffer 'x' of 256 bytes",
    ),
    "write_before": Fault(
        "st.global.b32 [%y_own+$], %tid;", "-4", "0",
        "out-of-bounds global write of 4 bytes at byte -4 of buffer 'y' of 512 bytes",
    ),
    "atomic_behind": Fault(
        "red.global.add.u32 [%y+$], 1;", "512", "508",
        "out-of-bounds global atomic of 4 bytes at byte 512 of buffer 'y'",
    ),
    "shared_behind": Fault(
        "@%first st.shared.b32 [tile+$], 1;", "256", "252",
        "out-of-bounds shared write of 4 bytes at byte 256 of 256",
    ),
    "copy_from_behind": Fault(
        f"add.s64 %x_own, %x_own, $; {_COPY} cp.async.wait_group 0;", "4", "0",
        "out-of-bounds global read of 1 bytes at byte 256 of buffer 'x'",
    ),
    "misaligned_global": Fault(
        "ld.global.b32 %r2, [%x+$];", "2", "4", "misaligned global read of 4 bytes"
    ),
    "misaligned_vector": Fault(
        "@%first st.shared.v4.b32 [tile+$], {%r1, %r1, %r1, %r1};", "8", "16",
        "misaligned shared write of 16 bytes",
    ),
    # ---- races in shared memory
    "missing_barrier": Fault(
        f"{_INITIALISE} st.shared.b32 [%own], %tid; $ ld.shared.b32 %r2, [%mirror];",
        "", "bar.sync 0;", _ANY_RACE,
    ),
    "missing_barrier_before_reuse": Fault(
        f"{_INITIALISE} ld.shared.b32 %r2, [%mirror]; $ st.shared.b32 [%own], 1;",
        "", "bar.sync 0;", f"(write-after-read|read-after-write) {_ANY_RACE}",
    ),
    "barrier_of_one_warp": Fault(
        f"{_INITIALISE} st.shared.b32 [%own], %tid; $ ld.shared.b32 %r2, [%mirror];",
        "bar.warp.sync -1;", "bar.sync 0;", _ANY_RACE,
    ),
    "two_writers": Fault(
        "st.shared.b32 [tile], $;", "%tid", "7", f"write-write {_ANY_RACE}"
    ),
    "same_value_then_read": Fault(
        f"{_INITIALISE} st.shared.b32 [tile], 7; $ @%second_warp ld.shared.b32 %r2, [tile];",
        "", "bar.sync 0;", _ANY_RACE,
    ),
    "two_writers_of_one_byte": Fault(
        "@%first st.shared.b32 [tile], 1; @%second_warp st.shared.b8 [tile+$], 2;",
        "3", "4", "write-write race on byte 3 of shared memory",
    ),
    "shared_counter": Fault(
        f"{_INITIALISE} $", "ld.shared.b32 %r2, [tile]; add.u32 %r2, %r2, 1; "
        "st.shared.b32 [tile], %r2;", "atom.shared.add.u32 %r2, [tile], 1;", _ANY_RACE,
    ),
    "warp_synchronous": Fault(
        f"{_INITIALISE} st.shared.b32 [%own], %tid; $ ld.shared.b32 %r2, [%mirror];",
        "", "bar.warp.sync -1;", _ANY_RACE, threads=32,
    ),
    "warp_synchronous_reuse": Fault(
        f"{_INITIALISE} ld.shared.b32 %r2, [%mirror]; $ st.shared.b32 [%own], %tid;",
        "", "bar.warp.sync -1;", _ANY_RACE, threads=32,
    ),
    # ---- races in global memory
    "missing_barrier_global": Fault(
        "st.global.b32 [%x_own], 5; $ ld.global.b32 %r2, [%x_mirror];", "", "bar.sync 0;",
        r"race on byte \d+ of x with thread \d+ of the same block at kernel.py:1",
    ),
    "missing_barrier_before_reuse_global": Fault(
        "ld.global.b32 %r2, [%x_mirror]; $ st.global.b32 [%x_own], 5;", "", "bar.sync 0;",
        r"race on byte \d+ of x with thread \d+ of the same block",
    ),
    "one_byte_global": Fault(
        "@%first st.global.b32 [%y], 1; @%second_warp ld.global.b8 %r2, [%y+$];", "3", "4",
        "race on byte 3 of y with thread",
    ),
    "two_blocks": Fault(
        "mad.lo.u32 %r2, %cta, $, 0; mul.wide.u32 %d0, %r2, 4; add.s64 %d0, %y_own, %d0; "
        "st.global.b32 [%d0], %tid;", "0", "64",
        r"write-write race on byte \d+ of y with thread \d+ of another block", grid=2,
    ),
    "read_of_another_block": Fault(
        "setp.eq.u32 %p0, %cta, 0; @%p0 st.global.b32 [%y_own], 1; "
        "@!%p0 ld.global.b32 %r2, [%y_own+$];", "0", "256",
        r"read-after-write race on byte \d+ of y with thread \d+ of another block", grid=2,
    ),
    "write_to_what_another_block_read": Fault(
        "setp.eq.u32 %p0, %cta, 0; @%p0 ld.global.b32 %r2, [%y_own+$]; "
        "@!%p0 st.global.b32 [%y_own], 1;", "0", "256",
        r"write-after-read race on byte \d+ of y with thread \d+ of another block", grid=2,
    ),
    "counter": Fault(
        "@%first $", "st.global.b32 [%y], 1;", "red.global.add.u32 [%y], 1;",
        "write-write race on byte 0 of y with thread 0 of another block", grid=3,
    ),
    # ---- copies, initialisation
    "no_wait": Fault(
        f"{_COPY} $ ld.shared.b32 %r2, [%own]; cp.async.wait_all;", "", "cp.async.wait_group 0;",
        r"read of byte \d+ of shared memory while a cp.async still fills it: no wait",
    ),
    "wait_for_too_few": Fault(
        f"{_COPY} cp.async.wait_group $; ld.shared.b32 %r2, [%own]; cp.async.wait_all;", "1", "0",
        r"read of byte \d+ of shared memory while a cp.async still fills it: no wait",
    ),
    "wait_without_barrier": Fault(
        f"{_INITIALISE} {_COPY} cp.async.wait_group 0; $ ld.shared.b32 %r2, [%mirror];", "",
        "bar.sync 0;", _ANY_RACE,
    ),
    "write_under_a_copy": Fault(
        f"{_COPY} $ st.shared.b32 [%own], 0; cp.async.wait_all;", "", "cp.async.wait_group 0;",
        r"write of byte \d+ of shared memory while a cp.async still fills it: no wait",
    ),
    "left_in_flight": Fault(
        f"{_COPY} $", "", "cp.async.wait_all;", "the thread ends with cp.async in flight"
    ),
    "uninitialised": Fault(
        "$ ld.shared.b32 %r2, [%own];", "", "st.shared.b32 [%own], 0;",
        r"read of uninitialised shared memory at byte \d+",
    ),
    "partly_uninitialised": Fault(
        "st.shared.$ [%own], %tid; ld.shared.b32 %r2, [%own];", "b16", "b32",
        r"read of uninitialised shared memory at byte \d*[02468],",
    ),
    # ---- threads that must come together
    "divergent_barrier": Fault(
        "$ bar.sync 0; bra END; OTHER: bar.sync 0; END:", "@%second_warp bra OTHER;", "",
        r"divergent barrier 0: other threads wait at kernel.py:1 \(PTX line \d+\)",
    ),
    # Who ends first depends on the order: the others come to the barrier later, or wait for ever.
    "barrier_after_exit": Fault(
        "$ bar.sync 0;", "@!%second_warp ret;", "",
        "barrier of the whole block after [0-9]+ of its threads ended|deadlock",
    ),
    "two_barriers": Fault(
        "mul.lo.u32 %r2, %warp, $; bar.sync %r2;", "1", "0",
        r"deadlock in block \(0, 0, 0\): 64 of 64 threads wait and none can go on: thread 0 in "
        r"bar.sync at kernel.py:1 \(PTX line \d+\); thread 1 in",
    ),
    "half_a_warp": Fault(
        "setp.lt.u32 %p0, %tid, 16; @!%p0 bra END; vote.sync.any.pred %p1, %p0, $; END:",
        "0xffffffff", "0xffff", "16 of 64 threads wait and none can go on: thread 0 in vote.sync",
    ),
    "absent_lane": Fault(
        "and.b32 %r2, %tid, 31; setp.lt.u32 %p0, %r2, 16; "
        "@%p0 shfl.sync.bfly.b32 %r3, %tid, $, 31, 0xffff;", "16", "8",
        r"shfl.sync of lane \d+ reads lane \d+, which the mask lacks",
    ),
    "absent_self": Fault(
        "shfl.sync.bfly.b32 %r3, %tid, 1, 31, $;", "0xffff", "0xffffffff",
        "shfl.sync whose mask 0x0000ffff lacks its own lane|while lanes wait",
    ),
    "divergent_warp": Fault(
        "and.b32 %r2, %tid, 1; setp.eq.u32 %p0, %r2, 1; $ bar.warp.sync -1; bra END; "
        "OTHER: bar.warp.sync -1; END:", "@%p0 bra OTHER;", "",
        "divergent warp: this lane is in bar.warp.sync, other lanes wait in bar.warp.sync",
    ),
    "barrier_of_part_of_a_warp": Fault(
        "bar.sync 1, $;", "48", "64", "barrier 1 of 48 threads, which are not whole warps"
    ),
}  # fmt: skip


def _text(fault: Fault, planted: str) -> str:
    return f"    .loc 1 1 1\n    {fault.body.replace('$', planted)}"


# The block of `copy` gets buffers and sizes that it cannot work with; `located` has the text of a
# compiler that inlined one function into another.
_COPY_X_TO_Y = "    ld.global.b32 %r2, [%x_own];\n    st.global.b32 [%y_own], %r2;"
_LOCATED = """
    .loc 1 10 3
    mov.u32 %r2, 0;
    .loc 2 20 5, function_name $L__info_string0, inlined_at 1 10 3
    st.global.b32 [%y+1024], %r2;
    .loc 1 11 3"""
_SPIN = "AGAIN: ld.volatile.global.b32 %r2, [%y]; setp.eq.u32 %p0, %r2, 0; @%p0 bra AGAIN;"
PTX = _MODULE + "".join(
    _KERNEL.format(name=name, body=body)
    for name, body in (
        *((name, _text(fault, fault.fault)) for name, fault in FAULTS.items()),
        *((f"{name}_mended", _text(fault, fault.mended)) for name, fault in FAULTS.items()),
        ("copy", _COPY_X_TO_Y),
        ("located", _LOCATED),
        ("spin", _SPIN),
    )
)


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    return np.arange(THREADS, dtype=np.int32), np.zeros(2 * THREADS, np.int32)


def _run(name: str, grid: int = 1, threads: int = THREADS, options: Options = _DEFAULT) -> None:
    Kernel(PTX, name)((grid,), (threads,), *_arrays(), options=options)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", list(FAULTS))
def test_fault(name: str, seed: int) -> None:
    fault, options = FAULTS[name], Options(seed=seed)
    with pytest.raises(SimulatorError, match=fault.match):
        _run(name, fault.grid, fault.threads, options)
    _run(f"{name}_mended", fault.grid, fault.threads, options)


def test_kinds_of_races() -> None:
    """Thread by thread, so that it is known who comes first."""
    with pytest.raises(SimulatorError, match="write-after-read race on byte 0 of shared memory"):
        _run("missing_barrier")
    with pytest.raises(SimulatorError, match="read-after-write race on byte 3 of y with thread 0"):
        _run("one_byte_global")


def test_read_only_buffer() -> None:
    x, y = _arrays()
    x.flags.writeable = False
    Kernel(PTX, "copy")((1,), (THREADS,), x, y)
    np.testing.assert_array_equal(y[:THREADS], x)
    y.flags.writeable = False
    with pytest.raises(SimulatorError, match="write of 4 bytes to byte 0 of the read-only buffer"):
        Kernel(PTX, "copy")((1,), (THREADS,), x, y)


def test_location_of_inlined_code() -> None:
    line = next(i for i, text in enumerate(PTX.split("\n"), 1) if "[%y+1024]" in text)
    expected = rf"at inlined.py:20, inlined at kernel.py:10 \(PTX line {line}\)"
    with pytest.raises(SimulatorError, match=expected):
        _run("located")


def test_thread_that_waits_for_ever() -> None:
    with pytest.raises(SimulatorError, match="the thread runs for ever: it may wait for another"):
        _run("spin")


@pytest.mark.parametrize("threads", [0, 1025])
def test_size_of_the_block(threads: int) -> None:
    with pytest.raises(SimulatorError, match=f"a block cannot have {threads} threads"):
        _run("copy", threads=threads)


def test_size_of_shared_memory() -> None:
    with pytest.raises(SimulatorError, match="and 300000 bytes of shared memory"):
        Kernel(PTX, "copy")((1,), (THREADS,), *_arrays(), shared_bytes=300000 - 256)


def test_checks_that_are_switched_off() -> None:
    _run("missing_barrier", options=Options(races=False))
    _run("missing_barrier_global", options=Options(races=False))
    _run("uninitialised", options=Options(initialised=False))


def test_deletions() -> None:
    lines = [
        "bar.sync 0;", "@%p1 bar.sync 1, 64;", "barrier.sync.aligned 0;", "bar.warp.sync -1;",
        "cp.async.wait_group 2;", "cp.async.wait_all;", "wgmma.wait_group.sync.aligned 0;",
        "wgmma.fence.sync.aligned;", "fence.proxy.async.shared::cta;",
    ]  # fmt: skip
    others = [
        "// bar.sync 0;", "wgmma.commit_group.sync.aligned;", "cp.async.commit_group;",
        "bar.red.popc.u32 %r1, 0, %p1;", "shfl.sync.bfly.b32 %r1, %r1, 1, 31, -1;",
    ]  # fmt: skip
    ptx = "\n".join([*others, *lines])
    found = deletions(ptx)
    assert [(d.line, d.text) for d in found] == list(enumerate(lines, len(others) + 1))
    for deletion in found:
        kept = [text if i != deletion.line else "" for i, text in enumerate(ptx.split("\n"), 1)]
        assert deletion.ptx.split("\n") == kept


def test_search() -> None:
    cases = deletions("bar.sync 0; bar.sync 1; bar.sync 2; bar.sync 3;")

    def run(ptx: str, seed: int) -> bool:
        if "sync 1" not in ptx:
            raise SimulatorError("a race")
        return seed < 2 or "sync 2" in ptx

    evidence = [outcome.evidence for outcome in search(cases, run, [0, 1, 2, 3])]
    assert evidence == ["", "seed 0: a race", "seed 2: wrong result", ""]
    evidence = [outcome.evidence for outcome in search(cases, run, [1])]
    assert evidence == ["", "seed 1: a race", "", ""]
