"""Compiled HLO text, read as far as planning needs it: instructions, and how often each one runs.

XLA's cost analysis counts a loop's body once, and says nothing about collectives; the text says both. The format is
XLA's own (openxla.org/xla/operation_semantics), as the CPU and TPU compilers of jaxlib 0.10 and libtpu 0.0.51 print it.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b([a-z]+\d*\w*)\[([\d,<=]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")
_TRIP_COUNT = re.compile(r'known_trip_count"?:\{"n":"(\d+)"')
# What calls a computation once each time it runs; elsewhere `to_apply` is the operator of a reduction.
CALLERS = ("call", "conditional", "fusion", "while")


@dataclasses.dataclass(frozen=True)
class ArrayShape:
    """One array of an instruction's result.

    Attributes:
      dims: sizes of its dimensions.
      num_bytes: its size, without padding.
      hbm_bytes: its size in memory, padded to whole tiles; 0 where the layout puts it into a TPU's on-chip memory.
    """

    dims: tuple[int, ...]
    num_bytes: int
    hbm_bytes: int


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of HLO: `name = shape opcode(arguments), attributes`."""

    name: str
    shape: str
    opcode: str
    arguments: str
    attributes: str
    is_root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the instructions that it reads."""
        return _NAME.findall(self.arguments)

    @property
    def arrays(self) -> list[ArrayShape]:
        """The arrays of its result."""
        return parse_shape(self.shape)

    def called(self) -> list[str]:
        """Computations that it runs."""
        if self.opcode not in CALLERS and not self.opcode.startswith("async-"):
            return []
        names = _CALLED.findall(self.attributes)
        for branches in _BRANCHES.findall(self.attributes):
            names += _NAME.findall(branches)
        return names


Computation = dict[str, Instruction]


@dataclasses.dataclass(frozen=True)
class Module:
    """A compiled program.

    Attributes:
      computations: its computations by name, each in the order it runs.
      entry: name of the one that runs first.
    """

    computations: dict[str, Computation]
    entry: str


def parse_shape(text: str) -> list[ArrayShape]:
    """The arrays of a shape such as "f32[8,4]{1,0}" or a tuple of them; tokens have none."""
    found = []
    for dtype, sizes, layout in _ARRAY.findall(text):
        dims = tuple(int(size.removeprefix("<=")) for size in sizes.split(",") if size)
        memory = re.search(r"S\((\d+)\)", layout)
        digits = re.search(r"\d+", dtype)
        bits = 8 if dtype == "pred" else int(digits.group()) if digits else 0
        in_hbm = memory is None or memory.group(1) == "0"
        padded = math.ceil(math.prod(_padded(dims, layout)) * bits / 8)
        found.append(ArrayShape(dims, math.ceil(math.prod(dims) * bits / 8), padded if in_hbm else 0))
    return found


def _padded(dims: tuple[int, ...], layout: str) -> list[int]:
    """Dimensions filled up to the first tile of a layout such as {1,0:T(8,128)(2,1)}, the fastest dimension first."""
    tile = re.search(r"T\(([\d,]+)\)", layout)
    order = [int(dim) for dim in layout.strip("{}").split(":")[0].split(",") if dim]
    sizes = [dims[dim] for dim in order]
    if tile is None or not sizes:
        return list(dims)
    for place, step in enumerate(reversed([int(n) for n in tile.group(1).split(",")])):
        if place < len(sizes):
            sizes[place] = -(-sizes[place] // step) * step
    return sizes


def parse(text: str) -> Module:
    """Reads `compiled.as_text()`."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _COMPUTATION.match(line)
        if header:
            current = computations.setdefault(header.group(2), {})
            entry = header.group(2) if header.group(1) else entry
        elif current is not None and (match := _INSTRUCTION.match(line)):
            current[match.group(1)] = _instruction(match.group(1), match.group(2), line.lstrip().startswith("ROOT "))
    return Module(computations, entry)


def _instruction(name: str, rest: str, is_root: bool) -> Instruction:
    end = _closing(rest, 0) if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].lstrip()
    start = rest.index("(")
    end = _closing(rest, start)
    return Instruction(name, shape, rest[:start], rest[start + 1 : end - 1], rest[end:], is_root)


def _closing(text: str, start: int) -> int:
    """Position after the parenthesis that closes the one at `start`."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    raise ValueError(f"no closing parenthesis in {text[:80]!r}")


def run_counts(module: Module) -> dict[str, int]:
    """Runs of each computation in one call of the program; both sides of a conditional count as run."""
    counts: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        counts[name] = counts.get(name, 0) + times
        for instruction in module.computations[name].values():
            trips = trip_count(module, name, instruction) if instruction.opcode == "while" else 1
            for called in instruction.called():
                visit(called, times * trips)

    visit(module.entry, 1)
    return counts


def trip_count(module: Module, computation: str, loop: Instruction) -> int:
    """Iterations of a `while`: stated, or from the constants that its counter starts at, grows by and is compared with.

    A loop whose bound is no constant (its length depends on data) counts as one iteration, as in XLA's own analysis.
    """
    stated = _TRIP_COUNT.search(loop.attributes)
    if stated:
        return int(stated.group(1))
    around, state = _initial_state(module, computation, loop)
    condition, body = (_named(module, loop, role) for role in ("condition", "body"))
    before = state.operands if state is not None and state.opcode == "tuple" else []
    # What the condition compares: the counter and its bound, as (place in the loop's state, constant).
    compared = [(_index(condition.get(name)), _constant(condition, name)) for name in _root(condition).operands]
    after = _root(body).operands
    counters = [i for i, _ in compared if i is not None and i < len(after) and _step(module, body, after[i])]
    bounds = [value for _, value in compared if value is not None]
    # A bound that the loop carries along unchanged.
    carried = [i for i, _ in compared if i is not None and i not in counters and i < len(before)]
    bounds += [value for i in carried if (value := _constant(around, before[i])) is not None]
    if len(counters) != 1 or len(bounds) != 1:
        return 1
    start = _constant(around, before[counters[0]]) if counters[0] < len(before) else 0
    return -(-(bounds[0] - (start or 0)) // (_step(module, body, after[counters[0]]) or 1))


def _initial_state(module: Module, computation: str, loop: Instruction) -> tuple[Computation, Instruction | None]:
    """Initial state of a loop, and the computation that this stands in."""
    around = module.computations[computation]
    state = around.get(loop.operands[0])
    if state is not None and state.opcode == "parameter":
        # The CPU compiler puts a small loop into a computation of its own.
        for caller in module.computations.values():
            for instruction in caller.values():
                if instruction.opcode == "call" and computation in instruction.called():
                    return caller, caller.get(instruction.operands[int(state.arguments)])
    return around, state


def _named(module: Module, loop: Instruction, role: str) -> Computation:
    name = re.search(rf"\b{role}=%?([\w.\-]+)", loop.attributes)
    return module.computations[name.group(1)] if name else {}


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.is_root)


def _index(instruction: Instruction | None) -> int | None:
    """Index of the element of the loop's state that an instruction is."""
    if instruction is None or instruction.opcode != "get-tuple-element":
        return None
    found = re.search(r"\bindex=(\d+)", instruction.attributes)
    return int(found.group(1)) if found else None


def _step(module: Module, body: Computation, name: str) -> int | None:
    """The constant that a counter grows by, also where the addition stands in a fusion; None of anything else."""
    update = body[name]
    while update.opcode == "copy":
        update = body[update.operands[0]]
    constants = [_constant(body, operand) for operand in update.operands]
    if update.opcode == "fusion":
        inner = module.computations[update.called()[0]]
        update = _root(inner)
        constants += [_constant(inner, operand) for operand in update.operands]
    steps = [value for value in constants if value]
    return steps[0] if update.opcode == "add" and len(steps) == 1 else None


def _constant(computation: Computation, name: str) -> int | None:
    instruction = computation.get(name)
    while instruction is not None and instruction.opcode in ("copy", "bitcast", "convert"):
        instruction = computation.get(instruction.operands[0])
    if instruction is None or instruction.opcode != "constant" or not instruction.arguments.isdigit():
        return None
    return int(instruction.arguments)


def executed(module: Module) -> Iterator[tuple[int, Computation, Instruction]]:
    """(times it runs, its computation, instruction), also those inside fusions."""
    for name, times in run_counts(module).items():
        computation = module.computations[name]
        for instruction in computation.values():
            yield times, computation, instruction
