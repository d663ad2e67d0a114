"""Optimised HLO text as computations of instructions: their types, what they call, the source lines they come from.

It is the text of `compiled.as_text()`. What a program moves and computes is read from it in `vitscale.parallel.hlo`.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

# Opcodes that move data between devices; asynchronous ones end in "-start" and "-done".
COLLECTIVES = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
_CALLS = (
    r"\b(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
    r"(\{[^}]*\}|%[\w.\-]+)"
)
_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")
_ASSIGNMENT = re.compile(r"^\s+(ROOT )?%([\w.\-]+) = ")
_ARRAY = re.compile(r"\b([a-z]+[0-9]*[a-z0-9]*)\[([0-9,<=]*)\]")


@dataclass(frozen=True)
class Instruction:
    """One line of a computation; names are without their "%"."""

    name: str
    opcode: str
    type: str  # of the result: "bf16[128,64]{1,0}", or a tuple of such
    operands: tuple[str, ...]
    argument: str  # what stands between the parentheses
    attributes: str  # everything after them
    is_root: bool

    @property
    def bytes(self) -> int:
        """Of the result."""
        return type_bytes(self.type)

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Names of the computations that it runs: a fusion's, a loop's body and condition, a conditional's branches."""
        return tuple(
            name
            for match in re.finditer(_CALLS, self.attributes)
            for name in re.findall(r"%([\w.\-]+)", match.group(2))
        )

    def attribute(self, pattern: str) -> str:
        """The pattern's first group, found in the attributes; empty when they have none."""
        match = re.search(pattern, self.attributes)
        return match.group(1) if match else ""

    @property
    def target(self) -> str:
        """What a custom call calls; empty for everything else."""
        return self.attribute(r'custom_call_target="([^"]*)"')


@dataclass(frozen=True)
class Computation:
    """A function of the program: its instructions by name, operands before their users."""

    instructions: Mapping[str, Instruction]

    @cached_property
    def root(self) -> Instruction:
        return next(i for i in self.instructions.values() if i.is_root)

    @cached_property
    def users(self) -> Mapping[str, list[Instruction]]:
        """The instructions that take each value."""
        users: dict[str, list[Instruction]] = defaultdict(list)
        for instruction in self.instructions.values():
            for operand in dict.fromkeys(instruction.operands):
                users[operand].append(instruction)
        return users

    def parameter(self, index: int) -> Instruction:
        """The parameter that stands for the caller's operand `index`."""
        return next(
            i
            for i in self.instructions.values()
            if i.opcode == "parameter" and int(i.argument) == index
        )


class Module:
    """A whole program: computations by name (`entry` is where it starts), and the table of source lines."""

    def __init__(self, text: str) -> None:
        """Raises `ValueError` when the text has no entry computation, as StableHLO has none."""
        self.computations: dict[str, Computation] = {}
        self.entry = ""
        lines = text.splitlines()
        current: dict[str, Instruction] = {}
        for line in lines:
            if header := _HEADER.match(line):
                current = {}
                self.computations[header.group(2)] = Computation(current)
                self.entry = header.group(2) if header.group(1) else self.entry
            elif instruction := _parse_instruction(line):
                current[instruction.name] = instruction
        if not self.entry:
            raise ValueError("no ENTRY computation; pass the text of `compiled.as_text()`.")
        self._sources = _StackFrames(lines)

    def named(self, instruction: Instruction) -> tuple[str, str]:
        """(op_name, source) of an instruction, or of what it calls when it has none itself."""
        for candidate in [instruction, *self._fused(instruction)]:
            op_name = candidate.attribute(r'\bop_name="([^"]*)"')
            if op_name:
                return op_name, self._sources.of(candidate)
        return "", self._sources.of(instruction)

    def _fused(self, instruction: Instruction) -> Iterator[Instruction]:
        for name in instruction.called:
            yield from reversed(list(self.computations[name].instructions.values()))

    def inside(self, instruction: Instruction) -> Iterator[tuple[Computation, Instruction]]:
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

    def of(self, instruction: Instruction) -> str:
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


def _parse_instruction(line: str) -> Instruction | None:
    match = _ASSIGNMENT.match(line)
    if not match:
        return None
    start = match.end()
    end = _closing(line, start) + 1 if line[start] == "(" else line.index(" ", start)
    open_at = line.index("(", end)
    close_at = _closing(line, open_at)
    argument = line[open_at + 1 : close_at]
    return Instruction(
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


def arrays(type_text: str) -> list[tuple[str, tuple[int, ...]]]:
    """(dtype, dimensions) of every array in a type, tuples flattened."""
    return [
        (dtype, tuple(int(d.strip("<=")) for d in dims.split(",") if d))
        for dtype, dims in _ARRAY.findall(type_text)
    ]


def type_bytes(type_text: str) -> int:
    """Bytes of every array in a type, without padding; sub-byte elements are packed."""
    return sum(-(-math.prod(dims) * _bits(dtype) // 8) for dtype, dims in arrays(type_text))


def _bits(dtype: str) -> int:
    if dtype in ("pred", "token", "opaque"):
        return 8 if dtype == "pred" else 0
    # s32, bf16, f8e4m3fn, c64: the first number is the width.
    digits = re.search(r"\d+", dtype)
    if not digits:
        raise ValueError(f"the HLO dtype {dtype!r} has no known size.")
    return int(digits.group())


def trip_count(module: Module, loop: Instruction) -> int:
    """How often the body of a `while` runs. Raises `ValueError` when the text does not tell.

    From XLA's own analysis when it is in the text, else the constant that the loop's condition compares with, over what
    the body adds to the counter.
    """
    known = loop.attribute(r'"known_trip_count":\{"n":"(\d+)"')
    if known:
        return int(known)
    condition = module.computations[loop.attribute(r"condition=%([\w.\-]+)")]
    body = list(condition.instructions.values())
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
    step = _counter_step(condition, module.computations[loop.attribute(r"body=%([\w.\-]+)")])
    return math.ceil(bounds.pop() / step)


def _counter_step(condition: Computation, body: Computation) -> int:
    """What one run of a loop's body adds to the counter: 2 in a loop that XLA has unrolled once, as it does with those
    that multiply by a matrix while its shards go round; 1 where the text does not tell."""
    tested = [condition.instructions.get(name) for name in condition.root.operands]
    for element in tested:
        if element is None or element.opcode != "get-tuple-element":
            continue
        index = int(element.attribute(r"\bindex=(\d+)"))
        if body.root.opcode != "tuple":
            return 1
        update = body.instructions[body.root.operands[index]]
        if update.opcode == "add":
            steps = [body.instructions[name] for name in update.operands]
            constants = [int(s.argument) for s in steps if s.opcode == "constant"]
            return constants[0] if constants else 1
    return 1
