"""Costs of a compiled program per device, from its optimized HLO text, with loop bodies counted once per iteration.

XLA's own cost analysis counts loop bodies once and omits collectives. (compiled.cost_analysis() and
jax.experimental.roofline give 2.1 of 10.5 MFLOPs for a scan of five matmuls.) Counted here: FLOPs of matmuls and
convolutions, traffic between the chip and its main memory, and bytes received by collectives.
"""

import collections
import dataclasses
import functools
import math
import re

import numpy as np

from nextgpt_jax.aot.hlo import Computation, Instruction, library_call, parse, replica_group, trip_count

_COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "ragged-all-to-all")
_FREE = (
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id", "iota",
    "opt-barrier", "broadcast",
)  # fmt: skip
_SLICING = ("dynamic-slice", "gather", "slice")
_UPDATING = {"dynamic-update-slice": 1, "scatter": 2}  # in-place updates -> number of the operand with the update
_PASSING = ("tuple", "custom-call", *_COLLECTIVES)  # inside a fusion: pass an array through without reading it


@dataclasses.dataclass(frozen=True)
class Collective:
    """A kind of collective operation: its opcode, the number of devices that take part, and whether the group spans
    several slices (TPU) or hosts (GPU)."""

    opcode: str
    group_size: int
    crosses_slices: bool


@dataclasses.dataclass
class HloCost:
    """Costs per device. `received`: bytes by collective; `calls`: number of calls; `exposed_bytes`: received bytes that
    are not overlapped with a matmul or convolution in the compiled schedule."""

    flops: float = 0.0
    hbm_bytes: float = 0.0
    exposed_bytes: float = 0.0
    received: collections.Counter[Collective] = dataclasses.field(default_factory=collections.Counter)
    calls: collections.Counter[Collective] = dataclasses.field(default_factory=collections.Counter)

    def add(self, other: "HloCost", times: float = 1.0) -> None:
        self.flops += times * other.flops
        self.hbm_bytes += times * other.hbm_bytes
        self.exposed_bytes += times * other.exposed_bytes
        for mine, theirs in ((self.received, other.received), (self.calls, other.calls)):
            for key, value in theirs.items():
                mine[key] += times * value


def analyze(text: str, devices_per_slice: int = 0) -> HloCost:
    """The costs of a module given as `compiled.as_text()`.

    Args:
      devices_per_slice: devices that are linked directly; 0: all of them.
    """
    computations, entry = parse(text)
    return _Analysis(computations, devices_per_slice).cost(entry)


class _Analysis:
    def __init__(self, computations: dict[str, Computation], devices_per_slice: int):
        self._computations, self._devices_per_slice = computations, devices_per_slice
        self.cost = functools.cache(self.cost)

    def cost(self, name: str) -> HloCost:
        """Cost of a computation whose instructions run one by one."""
        total, computation = HloCost(), self._computations[name]
        channels: set[str] = set()  # channels counted so far: a collective may be spread over several fusions
        pending: dict[str, tuple[float, float]] = {}  # started -> received bytes, FLOPs before
        for instruction in computation.values():
            opcode = instruction.opcode
            found = HloCost()
            if opcode == "while":
                found.add(self.cost(instruction.called("body")), trip_count(instruction, self._computations))
            elif opcode == "conditional":
                branches = [self.cost(branch) for branch in instruction.branches()]
                found.add(max(branches, key=lambda cost: (cost.flops, cost.hbm_bytes)))
            elif opcode in ("call", "async-start"):
                found.add(self.cost(instruction.called("to_apply") or instruction.called("calls")))
            elif opcode not in _FREE and not opcode.endswith(("-done", "-update")):
                found = self._instruction(instruction, computation, channels)
            if opcode.endswith("-start"):
                pending[instruction.name] = sum(found.received.values()), total.flops + found.flops
                found.exposed_bytes = 0.0
            elif opcode.endswith("-done"):
                size, before = pending.pop(next(iter(instruction.operands), ""), (0.0, -1.0))
                found.exposed_bytes = size if total.flops == before else 0.0
            total.add(found)
        return total

    def _instruction(self, instruction: Instruction, computation: Computation, channels: set[str]) -> HloCost:
        found = HloCost(flops=self._flops(instruction, computation))
        fused = instruction.called("calls") if instruction.opcode == "fusion" else ""
        if fused:
            inside = self._fused(fused, channels)
            found.flops, found.received, found.calls = inside.flops, inside.received, inside.calls
            found.hbm_bytes = self._fusion_bytes(instruction, computation, fused)
        else:
            found.hbm_bytes = self._bytes(instruction, computation)
        self._add_collective(instruction, computation, channels, found)
        found.exposed_bytes = 0.0 if found.flops else sum(found.received.values())
        return found

    def _fused(self, name: str, channels: set[str]) -> HloCost:
        """FLOPs and collectives of a fused computation, nested ones included."""
        total = HloCost()
        for instruction in self._computations[name].values():
            total.flops += self._flops(instruction, self._computations[name])
            self._add_collective(instruction, self._computations[name], channels, total)
            if called := instruction.called("calls"):
                total.add(self._fused(called, channels))
        return total

    def _add_collective(
        self, instruction: Instruction, computation: Computation, channels: set[str], total: HloCost
    ) -> None:
        """Adds the instruction to `total` if it is a collective whose channel was not counted yet."""
        if not (collective := self._collective(instruction, computation)):
            return
        channel = re.search(r"channel_id=(\d+)", instruction.attributes)
        if channel and channel[1] in channels:
            return
        channels |= {channel[1]} if channel else set()
        kind, received = collective
        total.received[kind] += received
        total.calls[kind] += 1

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
        results = sum(array.hbm_bytes for array in instruction.results)
        operands = [computation[name] for name in instruction.operands if name in computation]
        if instruction.opcode in _SLICING:  # often copies from HBM onto the chip
            return results + _in_hbm(operands[0]) * sum(array.size for array in instruction.results)
        if instruction.opcode in _UPDATING:
            (part,) = operands[_UPDATING[instruction.opcode]].results
            return part.hbm_bytes + _in_hbm(instruction) * part.size
        if instruction.opcode.endswith("-start"):  # the result repeats the operands
            return sum(array.hbm_bytes for array in instruction.results)
        if instruction.opcode == "custom-call" and library_call(instruction):  # the last result is workspace
            results -= instruction.results[-1].hbm_bytes
        return results + sum(array.hbm_bytes for operand in operands for array in operand.results)

    def _fusion_bytes(self, instruction: Instruction, computation: Computation, fused: str) -> float:
        """Sliced operands count their slices only, in-place updates the updated slice only."""
        read = 0.0
        for number, name in enumerate(instruction.operands):
            arrays = computation[name].results if name in computation else ()
            read += min(sum(array.hbm_bytes for array in arrays), self._read(fused, number))
        body = self._computations[fused]
        root = next(i for i in body.values() if i.is_root)
        results = instruction.results
        made = [body[name] for name in root.operands] if root.opcode == "tuple" else [root] * len(results)
        return read + sum(min(array.hbm_bytes, self._written(i, body)) for i, array in zip(made, results))

    def _read(self, fused: str, number: int) -> float:
        """Bytes that a fused computation reads of an argument if it only slices it; infinity if it reads all of it."""
        body = self._computations[fused]
        names = [i.name for i in body.values() if i.opcode == "parameter" and i.text == str(number)]
        total = 0.0
        for name in names:  # grows by other names of the same array
            for user in (i for i in body.values() if name in i.operands):
                if user.opcode == "bitcast":
                    names.append(user.name)
                elif user.opcode in _SLICING:
                    total += user.results[0].size
                elif user.opcode == "fusion":
                    called = user.called("calls")
                    total += sum(self._read(called, at) for at, operand in enumerate(user.operands) if operand == name)
                elif user.opcode not in _PASSING and (user.opcode not in _UPDATING or user.operands[0] != name):
                    return math.inf
        return total

    def _written(self, made: Instruction, body: Computation) -> float:
        """Bytes of a fusion's result that are actually written: the update of a buffer; infinity if all of it."""
        if made.opcode == "bitcast":
            return self._written(body[made.operands[0]], body)
        if made.opcode == "fusion":
            called = self._computations[made.called("calls")]
            return self._written(next(i for i in called.values() if i.is_root), called)
        if made.opcode in _UPDATING:
            return body[made.operands[_UPDATING[made.opcode]]].results[0].size
        return 0.0 if made.opcode in ("parameter", *_COLLECTIVES) else math.inf

    def _collective(self, instruction: Instruction, computation: Computation) -> tuple[Collective, float] | None:
        if instruction.opcode == "recv":
            return _cross_slice_receive(instruction)
        kind = instruction.opcode.removesuffix("-start")
        if kind not in _COLLECTIVES:
            return None
        group = replica_group(instruction.attributes)
        between = bool(self._devices_per_slice) and len({device // self._devices_per_slice for device in group}) > 1
        operands = sum(a.size for name in instruction.operands for a in computation[name].results)
        n = max(1, len(group))
        if kind == "collective-permute":
            received = operands
        elif kind == "all-gather":
            received = operands * (n - 1)
        else:  # an all-reduce is a reduce-scatter and an all-gather
            received = operands * (n - 1) / n * (2 if kind == "all-reduce" else 1)
        return Collective(kind, n, between), received


def _library_flops(call: Instruction, operands: list[tuple[int, ...]]) -> float:
    """FLOPs of a call to cuBLAS (matmul) or cuDNN (convolution, attention); 0 for other custom calls."""
    if not (found := library_call(call)):
        return 0.0
    library, name, out = *found.groups(), call.results[0].shape
    if library == "cublas":
        axes = re.search(r'"lhs_contracting_dimensions":\[([^\]]*)\]', call.attributes)
        return 2.0 * math.prod(out) * math.prod(operands[0][int(i)] for i in re.findall(r"\d+", axes[1]))
    if name.startswith("fmha"):  # [B, T, H, d] and [B, S, K, d]; backward recomputes the scores
        (b, t, h, d), s = operands[0], operands[1][1]
        return (10.0 if "Backward" in name else 4.0) * b * t * h * s * d
    forward = {  # input, kernel and output of the convolution that a call computes or is a gradient of
        "convBackwardInput": (out, *operands[1::-1]),
        "convBackwardFilter": (operands[0], out, operands[1]),
    }
    left, right, result = forward.get(name, (*operands[:2], out))
    return _convolution_flops(left, right, result, call.attributes)


def _in_hbm(instruction: Instruction) -> bool:
    return instruction.results[0].in_hbm


def _cross_slice_receive(instruction: Instruction) -> tuple[Collective, float] | None:
    """A collective between TPU slices, which the compiler writes as send and receive through the hosts."""
    kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', instruction.attributes)
    slices = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', instruction.attributes)
    if not kind or not slices:
        return None
    spans = [[int(n) for n in part.split(":")] for part in slices[1].split(",")]
    count = sum(span[-1] - span[0] + 1 for span in spans)
    received = sum(array.size for array in instruction.results if array.shape)
    return Collective(kind[1].lower().replace("_", "-"), count, True), received


def _convolution_flops(left: tuple, right: tuple, out: tuple, attributes: str) -> float:
    """2 FLOPs per multiply-add; those with zeros from padding and dilation are not counted."""
    lhs, rhs, result = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", attributes).groups()
    axes = [label for label in rhs if label.isdigit()]

    def window(name: str, default: str) -> list[str]:
        found = re.search(rf"\b{name}=([\dx_\-]+)", attributes)
        return found[1].split("x") if found else [default] * len(axes)

    strides, dilations, spread = (window(n, "1") for n in ("stride", "rhs_dilate", "lhs_dilate"))
    total = 2.0 * out[result.index("b")] * out[result.index("f")] * right[rhs.index("i")]
    for at, axis in enumerate(sorted(axes)):
        low = int(window("pad", "0_0")[at].split("_")[0])
        total *= count_taps(
            left[lhs.index(axis)], right[rhs.index(axis)], out[result.index(axis)],
            low, int(strides[at]), int(dilations[at]), int(spread[at]),
        )  # fmt: skip
    return total


@functools.cache
def count_taps(size: int, kernel: int, out: int, low: int, stride: int, dilation: int, spread: int) -> int:
    """Along one axis, the pairs of an output position and a kernel position that meet an input element.

    Args:
      low: padding before the input.
      dilation: of the kernel.
      spread: dilation of the input.
    """
    places = np.arange(out)[:, None] * stride + np.arange(kernel) * dilation - low
    return int(((places >= 0) & (places <= (size - 1) * spread) & (places % spread == 0)).sum())
