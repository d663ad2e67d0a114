"""What a compiled program moves and computes, kernel by kernel, read from its optimised HLO text.

A ViT's matrix products run near the device's peak; everything else waits for memory. So bytes by kernel class, which
need no device, say where a training step's time goes. Counted per device, and as if every kernel read its inputs once
and wrote its outputs once: caches can only make it less, spilled registers more.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Literal, get_args

from vitscale.parallel.hlo_text import (
    COLLECTIVES,
    Computation,
    Instruction,
    Module,
    arrays,
    trip_count,
    type_bytes,
)

Kind = Literal["matmul", "attention", "convolution", "collective", "copy", "other"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class Kernel:
    """One kernel of the program; `bytes` and `flops` are those of all its runs."""

    name: str
    kind: Kind
    bytes: int
    flops: int  # of matrix products and attention; 0 elsewhere
    op_name: str  # the jax operation: "jit(step)/transpose(jvp())/dot_general"
    source: str = ""  # the innermost line outside installed packages: "vitscale/models/vit.py:151"
    runs: int = 1  # how often it runs: the product of the trip counts around it


@dataclass(frozen=True)
class Traffic:
    bytes: int
    flops: int
    count: int  # kernel launches


@dataclass(frozen=True)
class Consumer:
    """The kernels of one source line and operation, together."""

    kind: Kind
    op_name: str
    source: str
    bytes: int
    count: int


def kernels(hlo_text: str) -> list[Kernel]:
    """The kernels of one run: the entry computation, loop bodies times their trip counts, the larger branch."""
    module = Module(hlo_text)
    return list(_kernels_of(module, module.entry))


def traffic(hlo_text: str) -> dict[Kind, Traffic]:
    """Bytes, FLOPs and launches of every class of kernels; classes without a kernel are there with zeros."""
    total: dict[Kind, Traffic] = {}
    found = kernels(hlo_text)
    for kind in KINDS:
        mine = [k for k in found if k.kind == kind]
        total[kind] = Traffic(
            sum(k.bytes for k in mine), sum(k.flops for k in mine), sum(k.runs for k in mine)
        )
    return total


def top(hlo_text: str, n: int = 20, kinds: Iterable[Kind] = KINDS) -> list[Consumer]:
    """The `n` greatest movers of bytes, grouped by class, operation and source line."""
    groups: dict[tuple[Kind, str, str], list[Kernel]] = defaultdict(list)
    wanted = set(kinds)
    for kernel in kernels(hlo_text):
        if kernel.kind in wanted:
            groups[kernel.kind, kernel.op_name, kernel.source].append(kernel)
    rows = [
        Consumer(*key, sum(k.bytes for k in group), sum(k.runs for k in group))
        for key, group in groups.items()
    ]
    return sorted(rows, key=lambda row: -row.bytes)[:n]


# --- Kernels ------------------------------------------------------------------------------------

_FREE = frozenset(
    (
        "parameter",
        "constant",
        "tuple",
        "get-tuple-element",
        "bitcast",
        "after-all",
        "partition-id",
        "replica-id",
        "opt-barrier",
        "add-dependency",
        "domain",
    )
)
_MOVES = frozenset(
    (
        "copy",
        "transpose",
        "reshape",
        "slice",
        "dynamic-slice",
        "dynamic-update-slice",
        "pad",
        "concatenate",
        "reverse",
    )
)
_VIEWS = frozenset(("bitcast", "reshape", "copy"))
_SLICES = frozenset(("slice", "dynamic-slice", "gather"))


def _kernels_of(module: Module, computation: str) -> Iterator[Kernel]:
    for instruction in module.computations[computation].instructions.values():
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode == "while":
            trips = trip_count(module, instruction)
            for name in instruction.called:
                for kernel in _kernels_of(module, name):
                    yield _repeated(kernel, trips)
        elif opcode == "conditional":
            branches = [list(_kernels_of(module, name)) for name in instruction.called]
            yield from max(branches, key=lambda found: sum(k.bytes for k in found))
        elif opcode in ("call", "async-start"):
            for name in instruction.called:
                yield from _kernels_of(module, name)
        else:
            yield _kernel(module, module.computations[computation], instruction)


def _repeated(kernel: Kernel, times: int) -> Kernel:
    return replace(
        kernel,
        bytes=kernel.bytes * times,
        flops=kernel.flops * times,
        runs=kernel.runs * times,
    )


def _kernel(module: Module, computation: Computation, instruction: Instruction) -> Kernel:
    kind = _kind(module, instruction)
    op_name, source = module.named(instruction)
    flops = _flops(module, computation, instruction) if kind in ("matmul", "attention") else 0
    return Kernel(
        instruction.name,
        kind,
        _bytes(module, computation, instruction),
        flops,
        op_name,
        source,
    )


def _kind(module: Module, instruction: Instruction) -> Kind:
    opcodes = {instruction.opcode.removesuffix("-start")}
    targets = {instruction.target}
    for _, inner in module.inside(instruction):
        opcodes.add(inner.opcode)
        targets.add(inner.target)
    if any("fmha" in target for target in targets):
        return "attention"
    if opcodes & set(COLLECTIVES):
        return "collective"
    if "convolution" in opcodes or any("$conv" in target for target in targets):
        return "convolution"
    if "dot" in opcodes or any("matmul" in t or "gemm" in t for t in targets):
        return "matmul"
    if opcodes & _MOVES and opcodes <= _MOVES | _FREE | {"fusion"}:
        return "copy"
    return "other"


def _bytes(module: Module, computation: Computation, instruction: Instruction) -> int:
    opcode = instruction.opcode
    if opcode.endswith("-start") and opcode != "all-reduce-start":
        return instruction.bytes  # its type names what it reads beside what it writes
    if opcode == "fusion":
        fused = module.computations[instruction.called[0]]
        read = sum(
            _read_bytes(module, fused, fused.parameter(index))
            for index in range(len(instruction.operands))
        )
        return read + _written_bytes(fused, fused.root)
    operands = [computation.instructions[name] for name in dict.fromkeys(instruction.operands)]
    if opcode == "dynamic-update-slice":
        return 2 * operands[1].bytes
    if opcode in _SLICES:
        return 2 * instruction.bytes
    return sum(o.bytes for o in operands) + type_bytes(_without_workspace(instruction))


def _read_bytes(module: Module, fused: Computation, value: Instruction) -> int:
    """What a fusion reads of one input: only the slices, where all it does is slicing."""
    total = 0
    for user in fused.users.get(value.name, ()):
        if user.opcode in _VIEWS:
            read = _read_bytes(module, fused, user)
        elif user.opcode in _SLICES and user.operands[0] == value.name:
            read = user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == value.name:
            read = 0  # updated in place: the rest of it is not touched
        elif user.opcode == "fusion":
            nested = module.computations[user.called[0]]
            positions = [i for i, name in enumerate(user.operands) if name == value.name]
            read = max(_read_bytes(module, nested, nested.parameter(i)) for i in positions)
        else:
            return value.bytes
        total += read
    return min(total, value.bytes)


def _written_bytes(fused: Computation, value: Instruction) -> int:
    """What a fusion writes: for an in-place update, the update."""
    if value.opcode == "tuple":
        return sum(_written_bytes(fused, fused.instructions[name]) for name in value.operands)
    if value.opcode in _VIEWS and value.operands[0] in fused.instructions:
        source = fused.instructions[value.operands[0]]
        return min(value.bytes, _written_bytes(fused, source))
    if value.opcode == "dynamic-update-slice":
        return fused.instructions[value.operands[1]].bytes
    return value.bytes


def _without_workspace(instruction: Instruction) -> str:
    """The type of a library call without its scratch memory, which is the last of its outputs."""
    if instruction.opcode == "custom-call":
        return re.sub(r", [su]8\[\d+\](\{0\})?\)$", ")", instruction.type)
    return instruction.type


# --- FLOPs --------------------------------------------------------------------------------------


def _flops(module: Module, computation: Computation, instruction: Instruction) -> int:
    inner = [(computation, instruction), *module.inside(instruction)]
    return sum(_own_flops(where, candidate) for where, candidate in inner)


def _own_flops(computation: Computation, instruction: Instruction) -> int:
    if "fmha" in instruction.target:
        return _attention_flops(computation, instruction)
    if instruction.opcode == "dot":
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}").split(",")
    elif instruction.opcode == "custom-call":
        listed = instruction.attribute(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]')
        contracted = re.findall(r"\d+", listed)
    else:
        return 0
    (_, lhs), *_ = arrays(computation.instructions[instruction.operands[0]].type)
    (_, output), *_ = arrays(instruction.type)
    return 2 * math.prod(output) * math.prod(lhs[int(d)] for d in contracted if d)


def _attention_flops(computation: Computation, instruction: Instruction) -> int:
    """Two products of [T, D] by [D, S] forwards; backwards five (one of them is the scores again)."""
    dims = instruction.attribute(
        r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*\[([^\]]*)\]'
    )
    scores = math.prod(int(d) for d in re.findall(r"\d+", dims))
    (_, query), *_ = arrays(computation.instructions[instruction.operands[0]].type)
    products = 5 if "Backward" in instruction.target else 2
    return products * 2 * scores * query[-1]
