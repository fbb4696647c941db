"""What the lanes of a warp and the threads of a block do together, by both kinds of fibers."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import numpy as np
import numpy.typing as npt
import pytest

from .build import compiler
from .handwritten import Row, check_rows
from .kernel import Options

pytestmark = pytest.mark.skipif(compiler() is None, reason="g++ is not on the PATH")

Words = npt.NDArray[np.uint32]
THREADS = 128
_RNG = np.random.default_rng(0)
_A = _RNG.integers(0, 2**32, THREADS, np.uint32)
_B = _RNG.integers(0, 64, THREADS, np.uint32)
_FEW = _RNG.integers(0, 4, THREADS, np.uint32)
_LANE = np.arange(THREADS, dtype=np.uint32) % 32
_ODD = 0xAAAAAAAA


def of_warps(function: Callable[[Words], npt.ArrayLike], *inputs: Words) -> Words:
    """The function of each warp's lanes; a scalar is for all of them."""
    warps = zip(*(x.reshape(-1, 32) for x in inputs), strict=True)
    return np.concatenate([np.broadcast_to(function(*w), 32) for w in warps]).astype(np.uint32)


def shuffled(mode: str, width: int) -> tuple[Words, Words]:
    """What `shfl` by %b gives among `width` lanes, and whether its source was in range."""
    lane, step = _LANE.astype(int), (_B % 32).astype(int)
    first = lane // width * width
    source = {"idx": first + step % width, "bfly": lane ^ step, "up": lane - step,
              "down": lane + step}[mode]  # fmt: skip
    # A butterfly may reach the lanes of a lower segment: only its upper end is looked at.
    inside = source >= first if mode == "up" else source < first + width
    source = np.where(inside, source, lane)
    return _A[np.arange(THREADS) // 32 * 32 + source], inside.astype(np.uint32)


def shuffles(mode: str, width: int) -> list[Row]:
    clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
    shuffle = f"shfl.sync.{mode}.b32 %r0|%p0, %a, %b, {clamp:#x}, -1;"
    values, inside = shuffled(mode, width)
    return [
        Row(f"{shuffle} mov.b32 %x, %r0;", (_A, _B), values),
        Row(f"{shuffle} selp.u32 %x, 1, 0, %p0;", (_A, _B), inside),
    ]


def ballot(bits: npt.NDArray[np.bool_]) -> int:
    return sum(1 << i for i, bit in enumerate(bits) if bit)


def same_lanes(values: Words) -> list[int]:
    return [ballot(values == v) for v in values]


def odd_only(text: str, inputs: tuple[Words, ...], expected: Words) -> Row:
    """Only the odd lanes run the text; the others give 0."""
    guard = "and.b32 %r9, %lane, 1; setp.eq.u32 %p9, %r9, 1; mov.u32 %x, 0;"
    return Row(f"{guard} @%p9 {text}", inputs, np.where(_LANE % 2 == 1, expected, 0).astype("u4"))


_SIGNED = _A.view(np.int32)
_FLAGS = (_LANE == 5).astype(np.uint32)  # one of a warp, all of one, none
_FLAGS[32:64] = 1
_FLAGS[64:] = 0
_SET = "setp.gt.s32 %p0, %a, 0;"
_FLAG = "selp.u32 %x, 1, 0, %p1;"
_POSITIVE = _SIGNED > 0
_ODD_MASK = f"{_ODD:#x}"
WARP = [
    *(r for mode in ("idx", "bfly", "up", "down") for w in (32, 8) for r in shuffles(mode, w)),
    Row("shfl.sync.down.b32 %x, %a, 4, 31, -1; add.u32 %x, %x, %a;", (_A,),
        _A + of_warps(lambda a: np.concatenate([a[4:], a[-4:]]), _A)),
    odd_only(f"shfl.sync.bfly.b32 %x, %a, 2, 31, {_ODD_MASK};", (_A,),
             of_warps(lambda a: a[np.arange(32) ^ 2], _A)),
    Row(f"{_SET} vote.sync.ballot.b32 %x, %p0, -1;", (_A,), of_warps(ballot, _POSITIVE)),
    Row(f"{_SET} vote.sync.ballot.b32 %x, !%p0, -1;", (_A,), of_warps(ballot, ~_POSITIVE)),
    odd_only(f"vote.sync.ballot.b32 %x, %p9, {_ODD_MASK};", (), np.full(THREADS, _ODD)),
    *(Row(f"setp.eq.u32 %p0, %a, 1; vote.sync.{mode}.pred %p1, %p0, -1; {_FLAG}", (_FLAGS,),
          of_warps(function, _FLAGS))
      for mode, function in (("any", np.any), ("all", np.all),
                             ("uni", lambda f: f.min() == f.max()))),
    Row("redux.sync.add.s32 %x, %a, -1;", (_A,), of_warps(lambda a: a.sum() % 2**32, _A)),
    Row("redux.sync.min.s32 %x, %a, -1;", (_A,),
        of_warps(lambda a: a.view(np.int32).min().astype("u4"), _A)),
    Row("redux.sync.max.s32 %x, %a, -1;", (_A,),
        of_warps(lambda a: a.view(np.int32).max().astype("u4"), _A)),
    Row("redux.sync.min.u32 %x, %a, -1;", (_A,), of_warps(np.min, _A)),
    Row("redux.sync.max.u32 %x, %a, -1;", (_A,), of_warps(np.max, _A)),
    *(Row(f"redux.sync.{name}.b32 %x, %a, -1;", (_A,),
          of_warps(lambda a, f=function: reduce(f, a), _A))
      for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or),
                             ("xor", np.bitwise_xor))),
    odd_only(f"redux.sync.max.u32 %x, %a, {_ODD_MASK};", (_A,),
             of_warps(lambda a: a[1::2].max(), _A)),
    Row("match.any.sync.b32 %x, %a, -1;", (_FEW,), of_warps(same_lanes, _FEW)),
    Row("cvt.u64.u32 %d1, %a; shl.b64 %d1, %d1, 40; match.any.sync.b64 %x, %d1, -1;", (_FEW,),
        of_warps(same_lanes, _FEW)),
    Row("elect.sync %r0|%p0, -1; selp.u32 %x, 1, 0, %p0; add.u32 %x, %x, %r0;", (),
        (_LANE == 0).astype(np.uint32)),
]  # fmt: skip

_THREAD = np.arange(THREADS)
_TILE = ".shared .align 16 .b8 tile[512];"
_OWN = "mov.u32 %r1, tile; mad.lo.u32 %r0, %thread, 4, %r1; st.shared.b32 [%r0], %a;"


def exchange(barrier: str, flip: int) -> Row:
    """Threads read what the one `flip` away from them wrote; then all may write again."""
    read = f"xor.b32 %r2, %thread, {flip}; mad.lo.u32 %r2, %r2, 4, %r1; ld.shared.b32 %x, [%r2];"
    return Row(f"{_OWN} {barrier} {read} bar.sync 0;", (_A,), _A[_THREAD ^ flip])


_HALF = "shr.u32 %r3, %thread, 6; add.u32 %r3, %r3, 1;"  # the half of the block, from 1
BLOCK = [
    exchange("bar.sync 0;", 127),
    exchange("barrier.sync.aligned 5;", 127),
    exchange("barrier.cta.sync 0, 128;", 96),
    exchange("bar.warp.sync -1;", 31),
    exchange(f"{_HALF} bar.sync %r3, 64;", 63),
    Row(f"{_SET} bar.red.popc.u32 %x, 0, %p0;", (_A,),
        np.full(THREADS, _POSITIVE.sum(), np.uint32)),
    Row(f"{_SET} {_HALF} bar.red.popc.u32 %x, %r3, 64, %p0;", (_A,),
        np.repeat(_POSITIVE.reshape(2, 64).sum(1), 64).astype(np.uint32)),
    *(Row(f"setp.eq.u32 %p0, %a, 1; bar.red.{mode}.pred %p1, 0, {flag}; {_FLAG}", (values,),
          np.full(THREADS, expected, np.uint32))
      for mode, flag, values, expected in (
          ("or", "%p0", _FLAGS, 1), ("or", "%p0", 0 * _FLAGS, 0), ("and", "%p0", _FLAGS, 0),
          ("and", "!%p0", 0 * _FLAGS, 1))),
    # Two warps hand their words to a third and do not wait; the fourth has no part in it.
    Row(f"{_OWN} setp.lt.u32 %p0, %thread, 64; @%p0 bar.arrive 3, 96; "
        "shr.u32 %r2, %thread, 5; setp.eq.u32 %p1, %r2, 2; mov.u32 %x, 0; @%p1 bar.sync 3, 96; "
        "@%p1 ld.shared.b32 %x, [%r0+-256]; bar.sync 0;", (_A,),
        np.where(_THREAD // 32 == 2, np.roll(_A, 64), 0).astype(np.uint32)),
]  # fmt: skip


@pytest.mark.parametrize("portable", [False, True], ids=["native", "ucontext"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_cooperation(seed: int, portable: bool) -> None:
    check_rows([*WARP, *BLOCK], _TILE, portable, Options(seed=seed))
