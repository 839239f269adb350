"""Work of one device in a compiled program: FLOPs of its matmuls and convolutions, bytes moved to and from HBM.

Both follow XLA's HloCostAnalysis (xla/service/hlo_cost_analysis.cc) but for two things: a loop's body counts once an
iteration, and zeros of a convolution's padding count as multiplied, as in `train.flops`, since the hardware does so.
"""

import functools
import math
import re
from collections.abc import Iterator

import numpy as np

from imagen_jax.cost import hlo
from imagen_jax.cost.hlo import Computation, Instruction, Module

# Instructions that move nothing themselves: names for other buffers, or what they call is counted instead.
_FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all"}
_MOVES = {"copy", "transpose"}


def matmul_flops(module: Module) -> int:
    """FLOPs of all dots and convolutions that one device executes, two per multiply-add."""
    return sum(times * _flops(computation, instruction) for times, computation, instruction in hlo.executed(module))


def _flops(computation: Computation, instruction: Instruction) -> int:
    if instruction.opcode not in ("dot", "convolution"):
        return 0
    lhs, rhs = (computation[name].arrays[0].dims for name in instruction.operands[:2])
    out = instruction.arrays[0].dims
    if instruction.opcode == "convolution":
        return _convolution(instruction.attributes, lhs, rhs, out)
    contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
    dims = [int(dim) for dim in contracted.group(1).split(",") if dim] if contracted else []
    return 2 * math.prod(out) * math.prod(lhs[dim] for dim in dims)


def _convolution(attributes: str, lhs: tuple[int, ...], kernel: tuple[int, ...], out: tuple[int, ...]) -> int:
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes)
    if labels is None:
        raise ValueError(f"convolution without dim_labels: {attributes[:80]!r}")
    lhs_labels, kernel_labels, out_labels = labels.groups()
    window = re.search(r"window=\{([^}]*)\}", attributes)
    fields = dict(part.split("=") for part in window.group(1).split()) if window else {}
    # The kernel's input channels and the output's rows are already those of one group.
    flops = 2 * kernel[kernel_labels.index("i")] * out[out_labels.index("f")] * out[out_labels.index("b")]
    for dim in range(len(kernel_labels) - 2):
        stride, lhs_dilate, rhs_dilate = (
            int(fields[name].split("x")[dim]) if name in fields else 1
            for name in ("stride", "lhs_dilate", "rhs_dilate")
        )
        pad = [int(n) for n in fields["pad"].split("x")[dim].split("_")] if "pad" in fields else [0, 0]
        flops *= _taps(
            lhs[lhs_labels.index(str(dim))],
            kernel[kernel_labels.index(str(dim))],
            out[out_labels.index(str(dim))],
            stride,
            (pad[0], pad[1]),
            lhs_dilate,
            rhs_dilate,
        )
    return flops


@functools.cache
def _taps(
    lhs: int, size: int, positions: int, stride: int, pad: tuple[int, int], lhs_dilate: int, rhs_dilate: int
) -> int:
    """Pairs of kernel tap and output position along one dimension that are work."""
    # The TPU compiler writes the outer dimensions of a matmul as windows that hardly overlap.
    full = size > 1 and min(pad) >= size - 1
    if lhs_dilate == 1 and not full:
        return size * positions
    read = np.arange(positions)[:, None] * stride - pad[0] + np.arange(size) * rhs_dilate
    work = read % lhs_dilate == 0
    return int((work & (read >= 0) & (read <= (lhs - 1) * lhs_dilate) if full else work).sum())


def hbm_bytes(module: Module) -> int:
    """Bytes that one device reads from and writes to HBM.

    A fusion reads its operands and writes its result once; of a buffer that it only slices, or updates in place, the
    slice counts. Arrays count with the padding of their tiles. Buffers that the compiler keeps in on-chip memory count
    nothing. A CPU has no HBM: all counts there.
    """
    return sum(times * _moved(module, computation, instruction) for times, computation, instruction in _unfused(module))


def layout_bytes(module: Module) -> int:
    """Of `hbm_bytes` those of instructions that only lay an array out anew: copies, transposes, and fusions of them."""
    return sum(
        times * _moved(module, computation, instruction)
        for times, computation, instruction in _unfused(module)
        if _only_moves(module, instruction)
    )


def _unfused(module: Module) -> Iterator[tuple[int, Computation, Instruction]]:
    """Instructions that run on their own, and their number of runs; a fusion is one."""
    counts = hlo.run_counts(module)
    fused = {
        called
        for name in counts
        for instruction in module.computations[name].values()
        if instruction.opcode == "fusion"
        for called in instruction.called()
    }
    for name in counts.keys() - fused:
        computation = module.computations[name]
        for instruction in computation.values():
            yield counts[name], computation, instruction


def _only_moves(module: Module, instruction: Instruction) -> bool:
    if instruction.opcode != "fusion":
        return instruction.opcode in _MOVES
    inner = {i.opcode for i in module.computations[instruction.called()[0]].values()}
    return bool(inner & _MOVES) and inner <= _MOVES | {"parameter", "bitcast", "reshape"}


def _moved(module: Module, computation: Computation, instruction: Instruction) -> int:
    opcode = instruction.opcode
    if opcode in _FREE or opcode.startswith("async-"):
        return 0
    if opcode == "dynamic-slice":
        return 2 * _in_hbm(instruction)
    if opcode == "dynamic-update-slice":
        return 2 * _in_hbm(computation[instruction.operands[1]])
    if opcode == "fusion":
        return _fusion(module, computation, instruction)
    # The first half of an asynchronous pair reads, the second writes.
    written = 0 if opcode.endswith("-start") else _in_hbm(instruction)
    return written + sum(_read(computation.get(name)) for name in instruction.operands)


def _fusion(module: Module, computation: Computation, fusion: Instruction) -> int:
    inner = module.computations[fusion.called()[0]]
    parameters = {int(i.arguments): i.name for i in inner.values() if i.opcode == "parameter"}
    updates = [i for i in inner.values() if i.opcode == "dynamic-update-slice" and i.arrays == fusion.arrays]
    in_place = {_source(inner, update.operands[0]) for update in updates}
    written = sum(_in_hbm(inner[update.operands[1]]) for update in updates) if updates else _in_hbm(fusion)
    total = min(written, _in_hbm(fusion))
    for index, name in enumerate(fusion.operands):
        own = parameters.get(index)
        users = [i for i in inner.values() if own in i.operands]
        if own in in_place:
            continue
        if users and all(user.opcode == "dynamic-slice" and user.operands[0] == own for user in users):
            total += sum(map(_in_hbm, users))
        else:
            total += _read(computation.get(name))
    return total


def _source(computation: Computation, name: str) -> str:
    while computation[name].opcode in ("bitcast", "copy"):
        name = computation[name].operands[0]
    return name


def _read(instruction: Instruction | None) -> int:
    """Bytes of an operand; of a tuple nothing is read until an element of it is."""
    if instruction is None or instruction.shape.startswith("("):
        return 0
    return _in_hbm(instruction)


def _in_hbm(instruction: Instruction) -> int:
    return sum(array.hbm_bytes for array in instruction.arrays)
