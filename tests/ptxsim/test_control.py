"""Branches, loops, calls, launches of several modules, and what is said of unknown PTX."""

from __future__ import annotations

import math

import numpy as np
import pytest

from .build import compiler
from .emission import translate_module
from .errors import SimulatorError
from .handwritten import Row, check_rows, kernel, module
from .kernel import Kernel

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH")

THREADS = 64
_THREAD = np.arange(THREADS, dtype=np.uint32)
_A = np.random.default_rng(0).integers(1, 10**6, THREADS, np.uint32)
_B = np.random.default_rng(1).integers(1, 10**6, THREADS, np.uint32)
# square_sum is declared first; factorial calls itself; fill writes through a pointer; swap takes
# and returns an array.
_FUNCTIONS = """
.func (.param .b32 sum) square_sum(.param .b32 a, .param .b32 b);
.func (.param .b64 product) factorial(.param .b32 n) {
    .reg .pred %p; .reg .b32 %r<4>; .reg .b64 %d<4>;
    ld.param.u32 %r0, [n];
    mov.b64 %d0, 1;
    setp.le.u32 %p, %r0, 1;
    @%p bra DONE;
    sub.u32 %r1, %r0, 1;
    {
        .param .b32 less;
        .param .b64 rest;
        st.param.b32 [less], %r1;
        call.uni (rest), factorial, (less);
        ld.param.b64 %d1, [rest];
    }
    cvt.u64.u32 %d2, %r0;
    mul.lo.u64 %d0, %d1, %d2;
DONE:
    st.param.b64 [product], %d0;
    ret;
}
.func (.param .b32 sum) square_sum(.param .b32 a, .param .b32 b) {
    .reg .b32 %r<4>;
    ld.param.b32 %r0, [a];
    ld.param.b32 %r1, [b];
    mul.lo.u32 %r0, %r0, %r0;
    mad.lo.u32 %r0, %r1, %r1, %r0;
    st.param.b32 [sum], %r0;
    ret;
}
.func fill(.param .b64 to, .param .b32 value) {
    .reg .b32 %r<4>; .reg .b64 %d<4>;
    ld.param.b64 %d0, [to];
    ld.param.b32 %r0, [value];
    st.b32 [%d0], %r0;
    add.u32 %r0, %r0, 1;
    st.b32 [%d0+4], %r0;
    ret;
}
.func (.param .align 8 .b8 picked[8]) swap(.param .align 8 .b8 pair[8]) {
    .reg .b32 %r<4>;
    ld.param.v2.b32 {%r0, %r1}, [pair];
    st.param.v2.b32 [picked], {%r1, %r0};
    ret;
}
"""
ROWS = [
    Row("mov.b32 %r0, %a; mov.b32 %r1, %b; GCD: rem.u32 %r2, %r0, %r1; mov.b32 %r0, %r1; "
        "mov.b32 %r1, %r2; setp.ne.u32 %p0, %r1, 0; @%p0 bra GCD; mov.b32 %x, %r0;", (_A, _B),
        np.gcd(_A, _B)),
    Row("mov.b32 %x, 0; mov.b32 %r0, 0; OUTER: setp.ge.u32 %p0, %r0, %thread; @%p0 bra LEFT; "
        "mov.b32 %r1, 0; INNER: setp.ge.u32 %p1, %r1, %r0; @%p1 bra NEXT; "
        "add.u32 %r1, %r1, 1; and.b32 %r2, %r1, 1; setp.eq.u32 %p2, %r2, 0; @%p2 bra INNER; "
        "add.u32 %x, %x, %r1; bra.uni INNER; NEXT: add.u32 %r0, %r0, 1; bra OUTER; LEFT:", (),
        np.array([sum(sum(range(1, i + 1, 2)) for i in range(t)) for t in range(THREADS)], "u4")),
    Row("setp.lt.u32 %p0, %a, %b; mov.b32 %x, %a; @%p0 mov.b32 %x, %b; @!%p0 add.u32 %x, %x, 1;",
        (_A, _B), np.where(_A < _B, _B, _A + 1)),
    # The guard itself changes under the instruction.
    Row("setp.lt.u32 %p0, %a, %b; @%p0 setp.lt.u32 %p0, %a, 1000; selp.b32 %x, 1, 0, %p0;",
        (_A // 500, _B // 500), ((_A // 500 < _B // 500) & (_A // 500 < 1000)).astype(np.uint32)),
    Row("mov.b32 %r0, %a; { .reg .b32 %r<2>; mov.b32 %r0, 7; mov.b32 %r1, %r0; } mov.b32 %x, %r0;",
        (_A,), _A),
    Row("{ .param .b32 p0; .param .b32 p1; .param .b32 s; st.param.b32 [p0], %a; "
        "st.param.b32 [p1+0], %b; call (s), square_sum, (p0, p1); ld.param.b32 %x, [s]; }",
        (_A, _B), _A * _A + _B * _B),
    Row("and.b32 %r0, %thread, 15; { .param .b32 n; .param .b64 f; st.param.b32 [n], %r0; "
        "call.uni (f), factorial, (n); ld.param.b64 %dx, [f]; }", (),
        np.array([math.factorial(t % 16) for t in range(THREADS)], np.uint64)),
    Row(".local .align 8 .b8 pair[8]; mov.u64 %d1, pair; cvta.local.u64 %d1, %d1; "
        "{ .param .b64 to; .param .b32 value; st.param.b64 [to], %d1; st.param.b32 [value], %a; "
        "call.uni fill, (to, value); } ld.local.v2.b32 {%r0, %r1}, [pair]; "
        "mul.lo.u32 %x, %r0, %r1;", (_A,), _A * (_A + 1)),
    Row("{ .param .align 8 .b8 given[8]; .param .align 8 .b8 taken[8]; "
        "st.param.v2.b32 [given], {%a, %b}; call.uni (taken), swap, (given); "
        "ld.param.b64 %dx, [taken]; }", (_A, _B), _A.astype(np.uint64) << 32 | _B),
]  # fmt: skip


def test_control() -> None:
    check_rows(ROWS, _FUNCTIONS)


# The place of a thread in a grid of blocks of three dimensions; those of odd z leave early.
_PLACES = """
    mov.u32 %r0, %ctaid.z; mov.u32 %r1, %nctaid.y; mov.u32 %r2, %ctaid.y;
    mad.lo.u32 %r0, %r0, %r1, %r2; mov.u32 %r1, %nctaid.x; mad.lo.u32 %r0, %r0, %r1, %block;
    mov.u32 %r1, %ntid.z; mov.u32 %r2, %tid.z; mad.lo.u32 %r0, %r0, %r1, %r2;
    mov.u32 %r1, %ntid.y; mov.u32 %r2, %tid.y; mad.lo.u32 %r0, %r0, %r1, %r2;
    mov.u32 %r1, %ntid.x; mad.lo.u32 %r0, %r0, %r1, %thread;
    mul.wide.u32 %d0, %r0, 4; add.u64 %y, %y, %d0; st.global.b32 [%y], %r0;
    mov.u32 %r2, %tid.z; and.b32 %r2, %r2, 1; setp.eq.u32 %p0, %r2, 1;
    @%p0 ret;
    bra.uni STORE;
    trap;
STORE:
    add.u32 %r0, %r0, 1000; st.global.b32 [%y], %r0;
    mov.u32 %r3, %laneid; mov.u32 %r4, %warpid; mad.lo.u32 %r3, %r4, 32, %r3;
    st.global.b32 [%y+384], %r3;
"""
_NAME = "the_same"


def _counting(step: int) -> str:
    """Adds to a variable of the module, through shared memory, and stores what came of it."""
    body = f"""
        ld.global.b32 %r0, [state];
        add.u32 %r0, %r0, {step};
        st.shared.b32 [tile], %r0;
        ld.shared.b32 %r1, [tile];
        st.global.b32 [state], %r1;
        st.global.b32 [%y], %r1;
    """
    declarations = f".global .align 4 .b32 state = {step};\n.shared .align 4 .b8 tile[4];"
    return module(
        kernel(_NAME, ("y",), body),
        kernel("places", ("y",), _PLACES if step == 3 else ""),
        declarations=declarations,
    )


def test_places() -> None:
    grid, block = (2, 1, 2), (3, 4, 2)
    y = np.zeros(2 * 96, np.uint32)
    Kernel(_counting(3), "places")(grid, block, y)
    even = np.arange(96) // 12 % 2 == 0
    np.testing.assert_array_equal(y[:96], np.arange(96) + 1000 * even)
    np.testing.assert_array_equal(y[96:], np.where(even, np.arange(96) % 24, 0))


def test_two_modules() -> None:
    """Their kernels and variables have the same names, and nothing in common."""
    first, second = Kernel(_counting(3), _NAME), Kernel(_counting(50), _NAME)
    y = np.zeros(1, np.uint32)
    seen = []
    for launched in (first, second, second, first):
        launched((1,), (1,), y)
        seen.append(int(y[0]))
    before, other = seen[0] - 3, seen[1] - 50
    assert [seen[0] - before, seen[1] - other, seen[2] - other, seen[3] - before] == [3, 50, 100, 6]
    assert before % 3 == 0
    assert other % 50 == 0


def _error_of(text: str) -> str:
    with pytest.raises(SimulatorError) as raised:
        translate_module(module(kernel("bad", (), text)))
    return str(raised.value)


@pytest.mark.parametrize(
    ("instruction", "reason"),
    [
        ("frobnicate.b32 %r0, %r1", "the instruction 'frobnicate' is not simulated"),
        ("mul.rz.f32 %r0, %r1, %r2", "the modifiers rz are not simulated"),
        ("ld.global.mystery.b32 %r0, [%d0]", "the modifiers mystery are not simulated"),
        ("add.u32 %r0, %r1, %unknown", "unknown operand '%unknown'"),
        ("mov.b32 %unknown, %r1", "unknown register '%unknown'"),
        ("ld.param.b32 %r0, [nothing]", "unknown parameter 'nothing'"),
        ("mma.sync.aligned.m16n8k16.row.col.f16.f16.f16.f16 {%r0, %r1}, {%r0, %r1, %r2, %r3}, "
         "{%r4, %r5}, {%r6, %r7}", "is not simulated"),
    ],
)  # fmt: skip
def test_what_is_unknown(instruction: str, reason: str) -> None:
    ptx = module(kernel("bad", (), f"// a comment; with a semicolon\n    {instruction};"))
    line = next(i for i, text in enumerate(ptx.split("\n"), 1) if instruction in text)
    message = _error_of(f"// a comment; with a semicolon\n    {instruction};")
    assert message.startswith(f"PTX line {line}, from the PTX: cannot translate '{instruction}'")
    assert reason in message


def test_name_of_the_kernel() -> None:
    with pytest.raises(SimulatorError, match="the PTX has the_same, places"):
        Kernel(_counting(3))
    with pytest.raises(SimulatorError, match=f"{_NAME} takes 1 arguments, got 2"):
        Kernel(_counting(3), _NAME)((1,), (1,), 0, 0)
