"""PTX types: what they are in C++, and how many bytes they take."""

from __future__ import annotations

CPP_TYPES = {
    "pred": "bool",
    "b8": "uint8_t",
    "u8": "uint8_t",
    "s8": "int8_t",
    "b16": "uint16_t",
    "u16": "uint16_t",
    "s16": "int16_t",
    "f16": "uint16_t",
    "bf16": "uint16_t",
    "b32": "uint32_t",
    "u32": "uint32_t",
    "s32": "int32_t",
    "f32": "float",
    "f16x2": "uint32_t",
    "bf16x2": "uint32_t",
    "tf32": "uint32_t",
    "b64": "uint64_t",
    "u64": "uint64_t",
    "s64": "int64_t",
    "f64": "double",
}
_BYTES = {"bool": 1, "float": 4, "double": 8}
SIZES = {
    name: _BYTES.get(cpp) or int("".join(c for c in cpp if c.isdigit())) // 8
    for name, cpp in CPP_TYPES.items()
}
# Registers are untyped: a predicate, or the bits of a value.
REGISTER_TYPES = {
    name: "bool" if name == "pred" else f"uint{max(16, 8 * size)}_t" for name, size in SIZES.items()
}
FLOATS = ("f32", "f64")
HALVES = ("f16", "bf16", "f16x2", "bf16x2")


def is_signed(kind: str) -> bool:
    return kind[0] == "s"
