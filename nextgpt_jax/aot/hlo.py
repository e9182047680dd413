"""What one device does in a compiled program, read from its optimised HLO text: loops by their length, not once.

XLA's own cost analysis counts the body of a loop once and no collectives, hence this. Counted are operations of matrix
products and convolutions, bytes between the chip and its main memory, and bytes that collectives bring to the device.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Iterator

import numpy as np

_BITS = {
    "pred": 8, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "s32": 32, "u32": 32, "s64": 64, "u64": 64,
    "f16": 16, "bf16": 16, "f32": 32, "f64": 64, "f8e4m3fn": 8, "f8e5m2": 8, "c64": 64,
}  # fmt: skip
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\](\{[^{}]*\})?")
_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota",
    "opt-barrier", "broadcast",
)  # fmt: skip
_SLICING = ("dynamic-slice", "gather", "slice")
_UPDATING = {"dynamic-update-slice": 1, "scatter": 2}  # in place, and which operand is put there
_PASSING = ("tuple", "custom-call", *_COLLECTIVES)  # in a fusion: hand on an array that it does not read


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of exchange: its operation, how many devices take part, and whether they are in different slices."""

    kind: str
    devices: int
    between_slices: bool


@dataclasses.dataclass
class Work:
    """What a device does. `collectives`: bytes that arrive, by kind; `count`: how often; `exposed`: those bytes that
    arrive while no product or convolution runs, as the program is scheduled."""

    flops: float = 0.0
    bytes: float = 0.0
    exposed: float = 0.0
    collectives: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    count: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "Work", times: float = 1.0) -> None:
        self.flops += times * other.flops
        self.bytes += times * other.bytes
        self.exposed += times * other.exposed
        for mine, theirs in ((self.collectives, other.collectives), (self.count, other.count)):
            for key, value in theirs.items():
                mine[key] += times * value


@dataclasses.dataclass(frozen=True)
class Array:
    dtype: str
    shape: tuple[int, ...]
    in_memory: bool  # the chip's main memory, not what is on the chip itself or on the host

    @property
    def size(self) -> float:
        return math.prod(self.shape) * _BITS.get(self.dtype, 32) / 8

    @property
    def memory_bytes(self) -> float:
        return self.size if self.in_memory else 0.0


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    text: str  # of the operands
    is_root: bool


Computation = dict[str, Instruction]


def analyse(text: str, slice_devices: int = 0) -> Work:
    """The work of a device in a module, `compiled.as_text()`. slice_devices: how many a slice has (0: all)."""
    computations, entry = parse(text)
    return _Analysis(computations, slice_devices).work(entry)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a module by name, and the name of the one that is run."""
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
    """The place after the parenthesis that closes the one `text` begins with."""
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


class _Analysis:
    def __init__(self, computations: dict[str, Computation], slice_devices: int):
        self._computations, self._slice_devices = computations, slice_devices
        self.work = functools.cache(self.work)

    def work(self, name: str) -> Work:
        """Of a computation that is run instruction by instruction."""
        total, computation = Work(), self._computations[name]
        channels: set[str] = set()  # of the collectives that were counted: one may be spread over several fusions
        pending: dict[str, tuple[float, float]] = {}  # what began, with its bytes and the operations before it
        for instruction in computation.values():
            opcode = instruction.opcode
            found = Work()
            if opcode == "while":
                found.add(self.work(self._called(instruction, "body")), self._rounds(instruction))
            elif opcode == "conditional":
                branches = [self.work(branch) for branch in self._branches(instruction)]
                found.add(max(branches, key=lambda work: (work.flops, work.bytes)))
            elif opcode in ("call", "async-start"):
                called = self._called(instruction, "to_apply") or self._called(instruction, "calls")
                found.add(self.work(called))
            elif opcode not in _FREE and not opcode.endswith(("-done", "-update")):
                found = self._instruction(instruction, computation, channels)
            if opcode.endswith("-start"):
                pending[instruction.name] = sum(found.collectives.values()), total.flops + found.flops
                found.exposed = 0.0
            elif opcode.endswith("-done"):
                size, before = pending.pop(next(iter(instruction.operands), ""), (0.0, -1.0))
                found.exposed = size if total.flops == before else 0.0
            total.add(found)
        return total

    def _instruction(self, instruction: Instruction, computation: Computation, channels: set[str]) -> Work:
        found = Work(flops=self._flops(instruction, computation))
        fused = self._called(instruction, "calls") if instruction.opcode == "fusion" else ""
        if fused:
            inside = self._fused(fused, channels)
            found.flops, found.collectives, found.count = inside.flops, inside.collectives, inside.count
            found.bytes = self._fusion_bytes(instruction, computation, fused)
        else:
            found.bytes = self._bytes(instruction, computation)
        self._exchange(instruction, computation, channels, found)
        found.exposed = 0.0 if found.flops else sum(found.collectives.values())
        return found

    def _fused(self, name: str, channels: set[str]) -> Work:
        """Operations and collectives of a fused computation, and of those fused into it."""
        total = Work()
        for instruction in self._computations[name].values():
            total.flops += self._flops(instruction, self._computations[name])
            self._exchange(instruction, self._computations[name], channels, total)
            if called := self._called(instruction, "calls"):
                total.add(self._fused(called, channels))
        return total

    def _exchange(self, instruction: Instruction, computation: Computation, channels: set[str], total: Work) -> None:
        """Adds a collective to `total`, unless its channel was counted already."""
        if not (collective := self._collective(instruction, computation)):
            return
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        if channel and channel[1] in channels:
            return
        channels |= {channel[1]} if channel else set()
        kind, received = collective
        total.collectives[kind] += received
        total.count[kind] += 1

    def _flops(self, instruction: Instruction, computation: Computation) -> float:
        if instruction.opcode == "custom-call":
            return _library_flops(instruction, [computation[name].results[0].shape for name in instruction.operands])
        if instruction.opcode not in ("dot", "convolution"):
            return 0.0
        left, right = (computation[name].results[0] for name in instruction.operands[:2])
        out = math.prod(instruction.results[0].shape)
        if instruction.opcode == "dot":
            axes = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", instruction.attributes)
            return 2.0 * out * math.prod(left.shape[int(i)] for i in axes[1].split(",") if i)
        return _convolution_flops(left.shape, right.shape, instruction.results[0].shape, instruction.attributes)

    def _bytes(self, instruction: Instruction, computation: Computation) -> float:
        results = sum(array.memory_bytes for array in instruction.results)
        operands = [computation[name] for name in instruction.operands if name in computation]
        if instruction.opcode in _SLICING:  # often from memory onto the chip
            return results + _in_memory(operands[0]) * sum(array.size for array in instruction.results)
        if instruction.opcode in _UPDATING:
            (part,) = operands[_UPDATING[instruction.opcode]].results
            return part.memory_bytes + _in_memory(instruction) * part.size
        if instruction.opcode.endswith("-start"):  # the result repeats the operands
            return sum(array.memory_bytes for array in instruction.results)
        if instruction.opcode == "custom-call" and _library(instruction):  # the last result is room to work in
            results -= instruction.results[-1].memory_bytes
        return results + sum(array.memory_bytes for operand in operands for array in operand.results)

    def _fusion_bytes(self, instruction: Instruction, computation: Computation, fused: str) -> float:
        """Operands that are only sliced count as their slices, a buffer updated in place as what is written."""
        read = 0.0
        for number, name in enumerate(instruction.operands):
            arrays = computation[name].results if name in computation else ()
            read += min(sum(array.memory_bytes for array in arrays), self._read(fused, number))
        body = self._computations[fused]
        root = next(i for i in body.values() if i.is_root)
        results = instruction.results
        made = [body[name] for name in root.operands] if root.opcode == "tuple" else [root] * len(results)
        return read + sum(min(array.memory_bytes, self._written(i, body)) for i, array in zip(made, results))

    def _read(self, fused: str, number: int) -> float:
        """What a fused computation reads of its argument: slices of it, or all (infinity)."""
        body = self._computations[fused]
        names = [i.name for i in body.values() if i.opcode == "parameter" and i.text == str(number)]
        total = 0.0
        for name in names:  # grows by what is the same array under another name
            for user in (i for i in body.values() if name in i.operands):
                if user.opcode == "bitcast":
                    names.append(user.name)
                elif user.opcode in _SLICING:
                    total += user.results[0].size
                elif user.opcode == "fusion":
                    called = self._called(user, "calls")
                    total += sum(self._read(called, at) for at, operand in enumerate(user.operands) if operand == name)
                elif user.opcode not in _PASSING and (user.opcode not in _UPDATING or user.operands[0] != name):
                    return math.inf
        return total

    def _written(self, made: Instruction, body: Computation) -> float:
        """What of a result of a fused computation is new: what is put into a buffer, or all of it (infinity)."""
        if made.opcode == "bitcast":
            return self._written(body[made.operands[0]], body)
        if made.opcode == "fusion":
            called = self._computations[self._called(made, "calls")]
            return self._written(next(i for i in called.values() if i.is_root), called)
        if made.opcode in _UPDATING:
            return body[made.operands[_UPDATING[made.opcode]]].results[0].size
        return 0.0 if made.opcode in ("parameter", *_COLLECTIVES) else math.inf

    def _collective(self, instruction: Instruction, computation: Computation) -> tuple[Collective, float] | None:
        if instruction.opcode == "recv":
            return _from_other_slices(instruction)
        kind = instruction.opcode.removesuffix("-start")
        if kind not in _COLLECTIVES:
            return None
        group = replica_group(instruction.attributes)
        between = bool(self._slice_devices) and len({device // self._slice_devices for device in group}) > 1
        operands = sum(a.size for name in instruction.operands for a in computation[name].results)
        n = max(1, len(group))
        if kind == "collective-permute":
            received = operands
        elif kind == "all-gather":
            received = operands * (n - 1)
        else:  # an all-reduce is a reduce-scatter and an all-gather
            received = operands * (n - 1) / n * (2 if kind == "all-reduce" else 1)
        return Collective(kind, n, between), received

    def _called(self, instruction: Instruction, attribute: str) -> str:
        found = re.search(rf"\b{attribute}=%?([\w.\-]+)", instruction.attributes)
        return found[1] if found else ""

    def _branches(self, instruction: Instruction) -> list[str]:
        if found := re.search(r"branch_computations=\{([^}]*)\}", instruction.attributes):
            return re.findall(r"%?([\w.\-]+)", found[1])
        return [self._called(instruction, "true_computation"), self._called(instruction, "false_computation")]

    def _rounds(self, loop: Instruction) -> int:
        """How often a loop runs: XLA's own word, or the limit of its counter over the counter's step; else once."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(known[1])
        condition = self._computations[self._called(loop, "condition")]
        body = self._computations[self._called(loop, "body")]
        limits = [int(i.text) for i in condition.values() if i.opcode == "constant" and re.fullmatch(r"\d+", i.text)]
        counters = [i for i in condition.values() if i.opcode == "get-tuple-element"]
        root = next(i for i in body.values() if i.is_root)
        steps = [1]
        for counter in counters:
            place = int(re.search(r"index=(\d+)", counter.attributes)[1])
            following = body.get(root.operands[place]) if place < len(root.operands) else None
            if following is not None and following.opcode == "add":
                added = [body[name] for name in following.operands if name in body]
                steps += [int(i.text) for i in added if i.opcode == "constant" and re.fullmatch(r"\d+", i.text)]
        return -(-max(limits, default=1) // max(steps))


def _library(call: Instruction) -> re.Match | None:
    """The library and the function of a custom call to cuBLAS or cuDNN."""
    return re.search(r'custom_call_target="__(cublas|cudnn)\$([\w$]+)"', call.attributes)


def _library_flops(call: Instruction, operands: list[tuple[int, ...]]) -> float:
    """Of products by cuBLAS, and convolutions and attention by cuDNN; other custom calls count none."""
    if not (found := _library(call)):
        return 0.0
    library, name, out = *found.groups(), call.results[0].shape
    if library == "cublas":
        axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', call.attributes)
        return 2.0 * math.prod(out) * math.prod(operands[0][int(i)] for i in re.findall(r"\d+", axes[1]))
    if name.startswith("fmha"):  # [B, T, H, d] and [B, S, K, d]; backwards, scores are made again
        (b, t, h, d), s = operands[0], operands[1][1]
        return (10.0 if "Backward" in name else 4.0) * b * t * h * s * d
    forward = {  # the input, kernel and output of the convolution that a call computes, or is a gradient of
        "convBackwardInput": (out, *operands[1::-1]),
        "convBackwardFilter": (operands[0], out, operands[1]),
    }
    left, right, result = forward.get(name, (*operands[:2], out))
    return _convolution_flops(left, right, result, call.attributes)


def _in_memory(instruction: Instruction) -> bool:
    return instruction.results[0].in_memory


def _from_other_slices(instruction: Instruction) -> tuple[Collective, float] | None:
    """What comes through the host from other slices: TPUs exchange so what the links of a slice do not reach."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    slices = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', instruction.attributes)
    if not kind or not slices:
        return None
    spans = [_numbers(part.replace(":", ",")) for part in slices[1].split(",")]
    count = sum(span[-1] - span[0] + 1 for span in spans)
    received = sum(array.size for array in instruction.results if array.shape)
    return Collective(kind[1].lower().replace("_", "-"), count, True), received


def _convolution_flops(left: tuple, right: tuple, out: tuple, attributes: str) -> float:
    """Two a multiply-add; those with what padding and dilation put between the numbers are not done."""
    lhs, rhs, result = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    axes = [label for label in rhs if label.isdigit()]

    def window(name: str, default: str) -> list[str]:
        found = re.search(rf"\b{name}=([\dx_\-]+)", attributes)
        return found[1].split("x") if found else [default] * len(axes)

    strides, dilations, spread = (window(n, "1") for n in ("stride", "rhs_dilate", "lhs_dilate"))
    total = 2.0 * out[result.index("b")] * out[result.index("f")] * right[rhs.index("i")]
    for at, axis in enumerate(sorted(axes)):
        low = int(window("pad", "0_0")[at].split("_")[0])
        total *= _taps(
            left[lhs.index(axis)], right[rhs.index(axis)], out[result.index(axis)],
            low, int(strides[at]), int(dilations[at]), int(spread[at]),
        )  # fmt: skip
    return total


@functools.cache
def _taps(size: int, kernel: int, out: int, low: int, stride: int, dilation: int, spread: int) -> int:
    """How many pairs of an output and a kernel position along an axis meet a number of the input."""
    places = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - low
    return int(((places >= 0) & (places <= (size - 1) * spread) & (places % spread == 0)).sum())


def replica_group(attributes: str) -> list[int]:
    """The devices of the first group of a collective, in any of the ways in which XLA writes groups."""
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
    """The devices at the places of a mesh, if they are not in order: numbers, or a transposed array of them."""
    if found := re.search(r"device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\)", attributes):
        sizes = _numbers(found[1])
        return _iota(sizes, _numbers(found[2]) if found[2] else list(range(len(sizes))))
    found = re.search(r"device_ids=\(([\d,]+)\)", attributes)
    return _numbers(found[1]) if found else []


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def _iota(sizes: list[int], order: list[int]) -> list[int]:
    """0, 1, ... in an array of `sizes`, its axes in another order, flattened."""
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    found = [0]
    for axis in order:
        found = [base + i * strides[axis] for base in found for i in range(sizes[axis])]
    return found
