"""Registers that wgmma still uses, or that no fence has handed over: found in the code itself."""

from __future__ import annotations

import pytest

from .emission import translate_module
from .errors import SimulatorError

_KERNEL = """
.version 8.4
.target sm_90a
.address_size 64
.visible .entry product(.param .u64 a, .param .u64 b) {{
    .reg .pred %p<4>;
    .reg .b32 %r<8>, %d<4>, %a<4>;
    .reg .b64 %left, %right;
    ld.param.u64 %left, [a];
    ld.param.u64 %right, [b];
    mov.pred %p0, 1;
{body}
    ret;
}}
"""
_ZERO = "mov.b32 %d0, 0; mov.b32 %d1, 0; mov.b32 %d2, 0; mov.b32 %d3, 0;"
_LEFT = "mov.b32 %a0, 1; mov.b32 %a1, 1; mov.b32 %a2, 1; mov.b32 %a3, 1;"
_FENCE = "wgmma.fence.sync.aligned;"
_COMMIT = "wgmma.commit_group.sync.aligned;"
_WAIT = "wgmma.wait_group.sync.aligned 0;"
_FORM = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%d0, %d1, %d2, %d3}"
_PRODUCT = f"{_FORM}, %left, %right, %p0, 1, 1, 0, 0;"
_FROM_REGISTERS = f"{_FORM}, {{%a0, %a1, %a2, %a3}}, %right, %p0, 1, 1, 0;"
_USE = "add.f32 %r0, %d0, %d1;"

RIGHT = {
    "waited_for": f"{_ZERO} {_FENCE} {_PRODUCT} {_COMMIT} {_WAIT} {_USE}",
    "accumulated": f"{_ZERO} {_FENCE} {_PRODUCT} {_PRODUCT} {_COMMIT} {_WAIT} {_USE}",
    "left_in_registers": f"{_LEFT} {_ZERO} {_FENCE} {_FROM_REGISTERS} {_COMMIT} {_WAIT} {_LEFT}",
    "loop": f"{_ZERO} AGAIN: {_FENCE} {_PRODUCT} {_COMMIT} @%p1 bra AGAIN; {_WAIT} {_USE}",
    "one_group_in_flight": f"{_ZERO} AGAIN: {_FENCE} {_PRODUCT} {_COMMIT} "
    f"wgmma.wait_group.sync.aligned 1; @%p1 bra AGAIN; {_WAIT} {_USE}",
    "a_second_product": f"{_ZERO} {_FENCE} {_PRODUCT} {_COMMIT} {_WAIT} {_USE} {_ZERO} {_FENCE} "
    f"{_PRODUCT} {_COMMIT} {_WAIT} {_USE}",
}
_READ = r"%d0 is read while the wgmma of PTX line \d+ still writes it: no wgmma.wait_group"
WRONG = {
    "no_wait": (f"{_ZERO} {_FENCE} {_PRODUCT} {_COMMIT} {_USE}", _READ),
    "no_commit": (f"{_ZERO} {_FENCE} {_PRODUCT} {_WAIT} {_USE}", _READ),
    "wait_for_too_few": (
        f"{_ZERO} {_FENCE} {_PRODUCT} {_COMMIT} wgmma.wait_group.sync.aligned 1; {_USE}", _READ
    ),
    "no_wait_on_one_path": (
        f"{_ZERO} {_FENCE} {_PRODUCT} {_COMMIT} @%p1 bra USE; {_WAIT} USE: {_USE}", _READ
    ),
    "read_in_the_next_round": (
        f"{_ZERO} AGAIN: {_USE} {_FENCE} {_PRODUCT} {_COMMIT} @%p1 bra AGAIN; {_WAIT}", _READ
    ),
    "overwritten": (
        f"{_ZERO} {_FENCE} {_PRODUCT} {_COMMIT} mov.b32 %d2, 0; {_WAIT}",
        r"%d2 is overwritten while the wgmma of PTX line \d+ still writes it",
    ),
    "left_overwritten": (
        f"{_LEFT} {_ZERO} {_FENCE} {_FROM_REGISTERS} {_COMMIT} mov.b32 %a3, 0; {_WAIT}",
        r"%a3 is overwritten while the wgmma of PTX line \d+ still reads it",
    ),
    "no_fence": (f"{_ZERO} {_PRODUCT} {_COMMIT} {_WAIT}", "wgmma with no wgmma.fence before it"),
    "no_fence_on_one_path": (
        f"{_ZERO} @%p1 bra ON; {_FENCE} ON: {_PRODUCT} {_COMMIT} {_WAIT}",
        "wgmma with no wgmma.fence before it",
    ),
    "fence_too_early": (
        f"{_ZERO} {_FENCE} mov.b32 %d1, 0; {_PRODUCT} {_COMMIT} {_WAIT}",
        r"wgmma uses %d1, written at PTX line \d+ with no wgmma.fence since",
    ),
    "no_fence_for_the_next": (
        f"{_LEFT} {_ZERO} {_FENCE} {_FROM_REGISTERS} {_COMMIT} {_WAIT} {_LEFT} {_FROM_REGISTERS} "
        f"{_COMMIT} {_WAIT}",
        r"wgmma uses %a0, written at PTX line \d+ with no wgmma.fence since",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(RIGHT))
def test_right(name: str) -> None:
    translate_module(_KERNEL.format(body=RIGHT[name]))


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong(name: str) -> None:
    body, match = WRONG[name]
    with pytest.raises(SimulatorError, match=match):
        translate_module(_KERNEL.format(body=body))
