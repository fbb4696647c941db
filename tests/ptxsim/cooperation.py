"""Barriers, fences, and what the lanes of a warp do together."""

from __future__ import annotations

from .context import Context, handles
from .errors import SimulatorError
from .ptx import Instruction

_SHUFFLES = {"idx": "kIndex", "bfly": "kButterfly", "up": "kUp", "down": "kDown"}
_VOTES = {"ballot": "kBallot", "any": "kAny", "all": "kAll", "uni": "kUniform"}
_REDUCTIONS = {
    ("add", "u32"): "kAdd", ("add", "s32"): "kAdd",
    ("min", "u32"): "kMin", ("max", "u32"): "kMax",
    ("min", "s32"): "kMinSigned", ("max", "s32"): "kMaxSigned",
    ("and", "b32"): "kAnd", ("or", "b32"): "kOr", ("xor", "b32"): "kXor",
}  # fmt: skip


@handles("bar", "barrier", modifiers="warp sync cta red arrive aligned popc and or all")
def _barrier(context: Context, instruction: Instruction) -> str:
    operands, site = instruction.operands, context.site()
    if instruction.has("warp"):
        return f"warp_barrier({context.value(0, 'u32')}, {site});"
    if instruction.has("red"):
        if len(operands) not in (3, 4):
            raise SimulatorError("expected a destination, a barrier and a predicate")
        count = context.value(2, "u32") if len(operands) == 4 else "0"
        predicate = context.predicate(operands[-1])
        call = f"barrier({context.value(1, 'u32')}, {count}, {predicate}, {site})"
        everyone = (
            count if len(operands) == 4 else "current->ntid.x * current->ntid.y * current->ntid.z"
        )
        test = {"popc": "", "or": " != 0", "and": f" == {everyone}"}
        result = f"{call}{test[instruction.one_of('popc', 'and', 'or')]}"
        return context.assign(operands[0], result, "u32")
    count = context.value(1, "u32") if len(operands) > 1 else "0"
    if instruction.has("arrive"):
        return f"barrier_arrive({context.value(0, 'u32')}, {count}, {site});"
    if not instruction.has("sync"):
        raise SimulatorError("this form of the barrier is not simulated")
    return f"barrier({context.value(0, 'u32')}, {count}, false, {site});"


@handles("shfl", modifiers="sync idx bfly up down")
def _shuffle(context: Context, instruction: Instruction) -> str:
    destination, _, in_range = instruction.operands[0].partition("|")
    mode = _SHUFFLES[instruction.one_of(*_SHUFFLES)]
    operands = ", ".join(context.value(i, "u32") for i in (1, 2, 3, 4))
    call = f"shuffle(Shuffle::{mode}, {operands}, inside, {context.site()})"
    kept = context.assign(in_range.strip(), "inside", "u32") if in_range else ""
    return f"{{ bool inside; {context.assign(destination.strip(), call, 'b32')} {kept} }}"


@handles("vote", modifiers="sync ballot any all uni")
def _vote(context: Context, instruction: Instruction) -> str:
    mode = _VOTES[instruction.one_of(*_VOTES)]
    predicate, mask = context.predicate(instruction.operands[1]), context.value(2, "u32")
    call = f"vote(Vote::{mode}, {predicate}, {mask}, {context.site()})"
    return context.assign(instruction.operands[0], call, "b32")


@handles("redux", modifiers="sync add min max and or xor")
def _reduce(context: Context, instruction: Instruction) -> str:
    operation = instruction.one_of("add", "min", "max", "and", "or", "xor")
    reduction = _REDUCTIONS[operation, instruction.type]
    value, mask = context.value(1, "u32"), context.value(2, "u32")
    return context.result(
        f"reduce(Reduction::{reduction}, {value}, {mask}, {context.site()})", "u32"
    )


@handles("match", modifiers="sync any")
def _match(context: Context, instruction: Instruction) -> str:
    call = f"match_any({context.value(1)}, {context.value(2, 'u32')}, {context.site()})"
    return context.assign(instruction.operands[0], call, "b32")


@handles("elect", modifiers="sync")
def _elect(context: Context, instruction: Instruction) -> str:
    leader, _, chosen = instruction.operands[0].partition("|")
    call = f"elect({context.value(1, 'u32')}, leader, {context.site()})"
    stored = context.assign(leader.strip(), "leader", "b32")
    return f"{{ uint32_t leader; {context.assign(chosen.strip(), call, 'u32')} {stored} }}"


@handles("fence", modifiers="*")
def _fence(context: Context, instruction: Instruction) -> str:
    is_proxy = instruction.has("proxy") and any(
        m.startswith("async") for m in instruction.modifiers
    )
    return "fence_proxy_async();" if is_proxy else ";"


@handles(
    "membar", "createpolicy", "prefetch", "prefetchu", "discard", "applypriority", "nanosleep",
    "griddepcontrol", "setmaxnreg", modifiers="*",
)  # fmt: skip
def _nothing(context: Context, instruction: Instruction) -> str:
    """Ordering between blocks, caches and scheduling, which blocks that run in turn do not have."""
    return ";"
