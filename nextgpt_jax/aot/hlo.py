"""A parser of optimized HLO text: the computations of a compiled module as instructions with their arrays.

Also the parts of instructions that need a parser of their own: replica groups, loop trip counts, library calls.
"""

import dataclasses
import math
import re
from collections.abc import Iterator

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "f8e4m3fn": 8, "f8e5m2": 8, "c64": 64,
}  # fmt: skip
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")


@dataclasses.dataclass(frozen=True)
class Array:
    """An array in a program. `in_hbm`: in the device's main memory, not on the chip itself or on the host."""

    dtype: str
    shape: tuple[int, ...]
    in_hbm: bool

    @property
    def size(self) -> float:
        """Bytes."""
        return math.prod(self.shape) * _BITS.get(self.dtype, 32) / 8

    @property
    def hbm_bytes(self) -> float:
        return self.size if self.in_hbm else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: results = opcode(operands), attributes."""

    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]  # names of instructions
    attributes: str
    text: str  # what is between the parentheses
    is_root: bool

    def called(self, attribute: str) -> str:
        """The computation that an attribute such as `calls` names; "" if there is none."""
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", self.attributes)
        return found[1] if found else ""

    def branches(self) -> list[str]:
        """The computations of a conditional."""
        if found := re.search(r"branch_computations=\{([^}]*)\}", self.attributes):
            return re.findall(r"%?([\w.\-]+)", found[1])
        return [self.called("true_computation"), self.called("false_computation")]


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the name of the entry computation."""
    computations: dict[str, Computation] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\{$", line)
        if header and " = " not in line.split("(", 1)[0]:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif current is not None and (instruction := _instruction(line)):
            current[instruction.name] = instruction
    return computations, entry


def _instruction(line: str) -> Instruction | None:
    head = re.match(r"\s+(ROOT )?%?([\w.\-]+) = ", line)
    if not head:
        return None
    rest = line[head.end() :]
    end = _closing(rest) if rest.startswith("(") else rest.find(" ")
    results, rest = rest[:end], rest[end:].lstrip()
    opcode = re.match(r"([\w\-]+)\(", rest)
    if not opcode:
        return None
    close = _closing(rest[opcode.end() - 1 :]) + opcode.end() - 1
    operands = rest[opcode.end() : close - 1]
    return Instruction(
        name=head[2],
        opcode=opcode[1],
        results=tuple(_arrays(results)),
        operands=tuple(re.findall(r"%([\w.\-]+)", operands)),
        attributes=rest[close:],
        text=operands,
        is_root=bool(head[1]),
    )


def _closing(text: str) -> int:
    """The index after the parenthesis that closes the one `text` begins with."""
    depth = 0
    for i, c in enumerate(text):
        depth += (c == "(") - (c == ")")
        if not depth:
            return i + 1
    return len(text)


def _arrays(text: str) -> Iterator[Array]:
    for dtype, shape, layout in _SHAPE.findall(text):
        space = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(n) for n in shape.split(",") if n)
        if dtype in _BITS:
            yield Array(dtype, sizes, not space or space[1] == "0")


def trip_count(loop: Instruction, computations: dict[str, Computation]) -> int:
    """Iterations of a while loop: XLA's own annotation, or the counter's limit over its increment; 1 if unknown."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(known[1])
    condition = computations[loop.called("condition")]
    body = computations[loop.called("body")]
    limits = [int(i.text) for i in condition.values() if i.opcode == "constant" and re.fullmatch(r"\d+", i.text)]
    counters = [i for i in condition.values() if i.opcode == "get-tuple-element"]
    root = next(i for i in body.values() if i.is_root)
    increments = [1]
    for counter in counters:
        index = int(re.search(r"index=(\d+)", counter.attributes)[1])
        following = body.get(root.operands[index]) if index < len(root.operands) else None
        if following is not None and following.opcode == "add":
            added = [body[name] for name in following.operands if name in body]
            increments += [int(i.text) for i in added if i.opcode == "constant" and re.fullmatch(r"\d+", i.text)]
    return -(-max(limits, default=1) // max(increments))


def library_call(call: Instruction) -> re.Match | None:
    """The library and the function of a custom call to cuBLAS or cuDNN; None for other calls."""
    return re.search(r'custom_call_target="__(cublas|cudnn)\$([\w$]+)"', call.attributes)


def replica_group(attributes: str) -> list[int]:
    """The devices of the first group of a collective, in any of the notations of XLA."""
    if found := re.search(r"source_target_pairs=\{\{(\d+),(\d+)\}", attributes):
        return [int(found[1]), int(found[2])]
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return [int(n) for n in found[1].split(",")]
    if found := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        groups, sizes = _numbers(found[1]), _numbers(found[2])
        order = _numbers(found[3]) if found[3] else list(range(len(sizes)))
        return _iota(sizes, order)[: math.prod(groups) // groups[0]]
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\]([^{]*)\{([^}]*)\}", attributes):
        axes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", found[1])}
        chosen = re.findall(r"'([^']+)'", found[3])
        names = list(axes)
        order = [names.index(name) for name in (*[n for n in names if n not in chosen], *chosen)]
        places = _iota(list(axes.values()), order)[: math.prod(axes[name] for name in chosen)]
        devices = _mesh_devices(found[2])
        return [devices[place] for place in places] if devices else places
    return []


def _mesh_devices(attributes: str) -> list[int]:
    """The devices of a mesh, if they are not in order: a list, or a transposed array."""
    if found := re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", attributes):
        sizes = _numbers(found[1])
        return _iota(sizes, _numbers(found[2]) if found[2] else list(range(len(sizes))))
    found = re.search(r"device_ids=\(([\d,]+)\)", attributes)
    return _numbers(found[1]) if found else []


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _iota(sizes: list[int], order: list[int]) -> list[int]:
    """0, 1, ... in an array of `sizes`, transposed to `order` and flattened."""
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    found = [0]
    for axis in order:
        found = [base + i * strides[axis] for base in found for i in range(sizes[axis])]
    return found
