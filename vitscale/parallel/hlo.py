"""What a compiled program moves and computes, kernel by kernel, read from its optimised HLO text.

A ViT's matrix products run near the device's peak; everything else waits for memory. So bytes by kernel class, which
need no device, say where a training step's time goes. Counted per device, and as if every kernel read its inputs once
and wrote its outputs once: caches can only make it less, spilled registers more.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

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
    module = _Module(hlo_text)
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


# --- The text as computations of instructions ---------------------------------------------------


@dataclass(frozen=True)
class _Instruction:
    name: str
    opcode: str
    type: str
    operands: tuple[str, ...]
    argument: str  # what stands between the parentheses
    attributes: str  # everything after them
    is_root: bool

    @property
    def bytes(self) -> int:
        return _type_bytes(self.type)

    @cached_property
    def called(self) -> tuple[str, ...]:
        return tuple(
            name
            for match in re.finditer(_CALLS, self.attributes)
            for name in re.findall(r"%([\w.\-]+)", match.group(2))
        )

    def attribute(self, pattern: str) -> str:
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else ""

    @property
    def target(self) -> str:
        return self.attribute(r'custom_call_target="([^"]*)"')


@dataclass(frozen=True)
class _Computation:
    instructions: Mapping[str, _Instruction]

    @cached_property
    def root(self) -> _Instruction:
        return next(i for i in self.instructions.values() if i.is_root)

    @cached_property
    def users(self) -> Mapping[str, list[_Instruction]]:
        users: dict[str, list[_Instruction]] = defaultdict(list)
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users

    def parameter(self, index: int) -> _Instruction:
        return next(
            i
            for i in self.instructions.values()
            if i.opcode == "parameter" and int(i.argument) == index
        )


_CALLS = (
    r"\b(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)
_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_ASSIGNMENT = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\]")


class _Module:
    """Computations by name, and the table of source lines."""

    def __init__(self, text: str) -> None:
        self.computations: dict[str, _Computation] = {}
        self.entry = ""
        lines = text.splitlines()
        current: dict[str, _Instruction] = {}
        for line in lines:
            if header := _HEADER.match(line):
                current = {}
                self.computations[header.group(2)] = _Computation(current)
                self.entry = header.group(2) if header.group(1) else self.entry
            elif instruction := _parse_instruction(line):
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError("no ENTRY computation; pass the text of `compiled.as_text()`.")
        self._sources = _StackFrames(lines)

    def named(self, instruction: _Instruction) -> tuple[str, str]:
        """(op_name, source) of an instruction, or of what it calls when it has none itself."""
        for candidate in [instruction, *self._fused(instruction)]:
            op_name = candidate.attribute(r'\bop_name="([^"]*)"')
            if op_name:
                return op_name, self._sources.of(candidate)
        return "", self._sources.of(instruction)

    def _fused(self, instruction: _Instruction) -> Iterator[_Instruction]:
        for name in instruction.called:
            yield from reversed(list(self.computations[name].instructions.values()))

    def inside(self, instruction: _Instruction) -> Iterator[tuple[_Computation, _Instruction]]:
        """Every instruction that the calls of `instruction` reach, with its computation."""
        for name in instruction.called:
            computation = self.computations[name]
            for inner in computation.instructions.values():
                yield computation, inner
                yield from self.inside(inner)


class _StackFrames:
    """The tables in front of a module that `stack_frame_id` points into; older texts carry the line itself."""

    def __init__(self, lines: list[str]) -> None:
        self._files: dict[int, str] = {}
        self._locations: dict[int, tuple[int, int]] = {}  # file, line
        self._frames: dict[int, tuple[int, int]] = {}  # location, parent
        for line in lines:
            if match := re.match(r'^(\d+) "(.*/.*)"$', line):
                self._files[int(match[1])] = match[2]
            elif match := re.match(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", line):
                self._locations[int(match[1])] = (int(match[2]), int(match[3]))
            elif match := re.match(r"^(\d+) \{file_location_id=(\d+) parent_frame_id=(\d+)", line):
                self._frames[int(match[1])] = (int(match[2]), int(match[3]))
            elif line.startswith("ENTRY"):
                break
        # XLA prints parents one too high, so that the outermost frame seems to be its own parent.
        self._shift = 1 if self._frames.get(1, (0, 0))[1] == 1 else 0

    def of(self, instruction: _Instruction) -> str:
        frame = int(instruction.attribute(r"stack_frame_id=(\d+)") or 0)
        found = [self._place(f) for f in self._upwards(frame)]
        if not found:
            file = instruction.attribute(r'source_file="([^"]*)"')
            line = instruction.attribute(r"source_line=(\d+)")
            found = [f"{file}:{line}"] if file else []
        ours = [place for place in found if "site-packages" not in place]
        return _short((ours or found or [""])[0])

    def _upwards(self, frame: int) -> Iterator[int]:
        while frame in self._frames:
            yield frame
            parent = self._frames[frame][1] - self._shift
            if parent >= frame:
                return
            frame = parent

    def _place(self, frame: int) -> str:
        file, line = self._locations.get(self._frames[frame][0], (0, 0))
        return f"{self._files.get(file, '?')}:{line}"


def _short(place: str) -> str:
    """The last three parts of a path: enough to find the file, the same on every machine."""
    return "/".join(place.split("/")[-3:])


def _parse_instruction(line: str) -> _Instruction | None:
    match = _ASSIGNMENT.match(line)
    if not match:
        return None
    start = match.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    open_at = line.index("(", end)
    close_at = _closing(line, open_at)
    argument = line[open_at + 1 : close_at]
    return _Instruction(
        name=match.group(2),
        opcode=line[end:open_at].strip(),
        type=line[start:end],
        operands=tuple(re.findall(r"%([\w.\-]+)", argument)),
        argument=argument,
        attributes=line[close_at + 1 :],
        is_root=bool(match.group(1)),
    )


def _closing(line: str, open_at: int) -> int:
    """Where the parenthesis at `open_at` closes."""
    depth = 0
    for match in re.finditer(r"[()]", line[open_at:]):
        depth += 1 if match.group() == "(" else -1
        if not depth:
            return open_at + match.start()
    raise ValueError(f"unbalanced parentheses in the HLO line: {line[:120]}")


def _arrays(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, dimensions) of every array in a type, tuples flattened."""
    return [
        (dtype, tuple(int(d.strip("<=")) for d in dims.split(",") if d))
        for dtype, dims in _ARRAY.findall(type_text)
    ]


def _type_bytes(type_text: str) -> int:
    return sum(-(-math.prod(dims) * _bits(dtype) // 8) for dtype, dims in _arrays(type_text))


def _bits(dtype: str) -> int:
    if dtype in ("pred", "token", "opaque"):
        return 8 if dtype == "pred" else 0
    # s32, bf16, f8e4m3fn, c64: the first number is the width.
    digits = re.search(r"\d+", dtype)
    if not digits:
        raise ValueError(f"the HLO dtype {dtype!r} has no known size.")
    return int(digits.group())


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
_COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
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


def _kernels_of(module: _Module, computation: str) -> Iterator[Kernel]:
    for instruction in module.computations[computation].instructions.values():
        opcode = instruction.opcode
        if opcode in _FREE or opcode.endswith(("-done", "-update")):
            continue
        if opcode == "while":
            trips = _trip_count(module, instruction)
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


def _trip_count(module: _Module, loop: _Instruction) -> int:
    """From XLA's own analysis when it is in the text, else the constant that the loop's condition compares with."""
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known:
        return int(known)
    condition = loop.attribute(r"condition=%([\w.\-]+)")
    body = list(module.computations[condition].instructions.values())
    for instruction in list(body):
        body += [inner for _, inner in module.inside(instruction)]
    bounds = {
        int(i.argument)
        for i in body
        if i.opcode == "constant" and re.fullmatch(r"[su]\d+\[\]\S*", i.type)
    }
    if len(bounds) != 1:
        raise ValueError(
            f"the loop %{loop.name} runs a number of times that its condition does not tell "
            f"(constants {sorted(bounds)}); count a program with fixed loops."
        )
    return bounds.pop()


def _kernel(module: _Module, computation: _Computation, instruction: _Instruction) -> Kernel:
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


def _kind(module: _Module, instruction: _Instruction) -> Kind:
    opcodes = {instruction.opcode.removesuffix("-start")}
    targets = {instruction.target}
    for _, inner in module.inside(instruction):
        opcodes.add(inner.opcode)
        targets.add(inner.target)
    if any("fmha" in target for target in targets):
        return "attention"
    if opcodes & set(_COLLECTIVES):
        return "collective"
    if "convolution" in opcodes or any("$conv" in target for target in targets):
        return "convolution"
    if "dot" in opcodes or any("matmul" in t or "gemm" in t for t in targets):
        return "matmul"
    if opcodes & _MOVES and opcodes <= _MOVES | _FREE | {"fusion"}:
        return "copy"
    return "other"


def _bytes(module: _Module, computation: _Computation, instruction: _Instruction) -> int:
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
    return sum(o.bytes for o in operands) + _type_bytes(_without_workspace(instruction))


def _read_bytes(module: _Module, fused: _Computation, value: _Instruction) -> int:
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


def _written_bytes(fused: _Computation, value: _Instruction) -> int:
    """What a fusion writes: for an in-place update, the update."""
    if value.opcode == "tuple":
        return sum(_written_bytes(fused, fused.instructions[name]) for name in value.operands)
    if value.opcode in _VIEWS and value.operands[0] in fused.instructions:
        source = fused.instructions[value.operands[0]]
        return min(value.bytes, _written_bytes(fused, source))
    if value.opcode == "dynamic-update-slice":
        return fused.instructions[value.operands[1]].bytes
    return value.bytes


def _without_workspace(instruction: _Instruction) -> str:
    """The type of a library call without its scratch memory, which is the last of its outputs."""
    if instruction.opcode == "custom-call":
        return re.sub(r", [su]8\[\d+\](\{0\})?\)$", ")", instruction.type)
    return instruction.type


# --- FLOPs --------------------------------------------------------------------------------------


def _flops(module: _Module, computation: _Computation, instruction: _Instruction) -> int:
    inner = [(computation, instruction), *module.inside(instruction)]
    return sum(_own_flops(where, candidate) for where, candidate in inner)


def _own_flops(computation: _Computation, instruction: _Instruction) -> int:
    if "fmha" in instruction.target:
        return _attention_flops(computation, instruction)
    if instruction.opcode == "dot":
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}").split(",")
    elif instruction.opcode == "custom-call":
        listed = instruction.attribute(r'"lhs_contracting_dimensions":\s*\[([^\]]*)\]')
        contracted = re.findall(r"\d+", listed)
    else:
        return 0
    (_, lhs), *_ = _arrays(computation.instructions[instruction.operands[0]].type)
    (_, output), *_ = _arrays(instruction.type)
    return 2 * math.prod(output) * math.prod(lhs[int(d)] for d in contracted if d)


def _attention_flops(computation: _Computation, instruction: _Instruction) -> int:
    """Two products of [T, D] by [D, S] forwards; backwards five (one of them is the scores again)."""
    dims = instruction.attribute(
        r'"intermediate_tensor_shape":\s*\{.*?"dimensions":\s*\[([^\]]*)\]'
    )
    scores = math.prod(int(d) for d in re.findall(r"\d+", dims))
    (_, query), *_ = _arrays(computation.instructions[instruction.operands[0]].type)
    products = 5 if "Backward" in instruction.target else 2
    return products * 2 * scores * query[-1]
