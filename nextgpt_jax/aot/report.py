"""Cost reports: per-device memory, FLOPs, HBM traffic and communication of compiled programs, as data and as text."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from nextgpt_jax.chips import GIB, Chip

GPU_INTERCONNECTS = {"ICI": "NVLink", "DCN": "network"}  # in text about GPUs


@dataclasses.dataclass(frozen=True)
class CollectiveCost:
    """All calls of one kind of collective in a program."""

    opcode: str  # all-gather, all-reduce, ...
    group_size: int  # devices per group
    crosses_slices: bool  # between slices (TPU) or hosts (GPU): over DCN
    received_bytes: float
    calls: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProgramCost:
    """Costs of a compiled program, per device. If the compiler rejected it, only `rejection` and the first fields hold
    something."""

    program: str
    chip: Chip
    num_devices: int
    batch_size: int
    memory: Mapping[str, float] = dataclasses.field(default_factory=dict)  # bytes by kind
    hardware_flops: float = 0.0  # executed FLOPs, recomputation included
    model_flops: float = 0.0  # without recomputation
    hbm_bytes: float = 0.0  # traffic between the chip and its main memory
    collectives: tuple[CollectiveCost, ...] = ()  # most received bytes first
    exposed_bytes: float = 0.0  # received while no matmul or convolution runs, in the compiled schedule
    compile_seconds: float = 0.0
    rejection: str = ""  # why the compiler found no memory for it
    suggestions: tuple[str, ...] = ()  # what would reduce the memory of a program that does not fit

    @property
    def memory_bytes(self) -> float:
        """Peak bytes of the chip's memory."""
        return sum(self.memory.values())

    @property
    def fits(self) -> bool:
        return not self.rejection and self.memory_bytes <= self.chip.memory

    def received_bytes(self, *, crosses_slices: bool) -> float:
        """Bytes received over DCN or, without `crosses_slices`, over ICI."""
        return sum(c.received_bytes for c in self.collectives if c.crosses_slices == crosses_slices)

    @property
    def seconds(self) -> dict[str, float]:
        """Time that each resource of the chip is busy at its peak rate: compute, HBM, ICI, DCN."""
        return {
            "compute": self.hardware_flops / self.chip.flops,
            "HBM": self.hbm_bytes / self.chip.hbm_bandwidth,
            "ICI": self.received_bytes(crosses_slices=False) / self.chip.ici_bandwidth,
            "DCN": self.received_bytes(crosses_slices=True) / self.chip.dcn_bandwidth,
        }

    @property
    def roofline_seconds(self) -> float:
        """Time of the busiest resource, as if all others were overlapped with it: a lower bound."""
        return max(self.seconds.values())

    @property
    def bound_by(self) -> str:
        """The busiest resource."""
        return max(self.seconds, key=self.seconds.get)

    @property
    def mfu(self) -> float:
        """Model FLOP utilization at the roofline."""
        return self.model_flops / (self.roofline_seconds * self.chip.flops) if self.roofline_seconds else 0.0

    def to_dict(self) -> dict[str, Any]:
        """The costs as JSON-serialisable data, with what follows from them."""
        fields = {**vars(self), "chip": self.chip.name, "memory": dict(self.memory)}
        fields["collectives"] = [dataclasses.asdict(collective) for collective in self.collectives]
        fields["suggestions"] = list(self.suggestions)
        found = {"memory_bytes": self.memory_bytes, "fits": self.fits}
        if not self.rejection:
            found |= {name: getattr(self, name) for name in ("seconds", "roofline_seconds", "bound_by", "mfu")}
        return fields | found


@dataclasses.dataclass(frozen=True)
class CostReport:
    """Costs of several programs of a config on a topology."""

    topology: str
    num_slices: int
    programs: tuple[ProgramCost, ...]

    @property
    def fits(self) -> bool:
        return all(cost.fits for cost in self.programs)

    def __getitem__(self, program: str) -> ProgramCost:
        """The costs of a program by its name (of a training step: its stage's)."""
        return {cost.program: cost for cost in self.programs}[program]

    def __str__(self) -> str:
        return format_report(self)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-serialisable data."""
        programs = [cost.to_dict() for cost in self.programs]
        return {"topology": self.topology, "num_slices": self.num_slices, "fits": self.fits, "programs": programs}


def format_report(report: CostReport) -> str:
    """A report as text."""
    return "\n".join(map(format_program, report.programs))


def format_program(cost: ProgramCost) -> str:
    """The costs of a program as lines of text."""
    chip = cost.chip
    gpu = "NVIDIA" in chip.name
    head = f"{cost.program}: batch {cost.batch_size} on {cost.num_devices} x {chip.name}"
    suggestions = [f"  to make it fit: {', or '.join(cost.suggestions)}"] if cost.suggestions else []
    if cost.rejection:
        return "\n".join([f"{head} DOES NOT FIT: {cost.rejection}", *suggestions])
    memory = ", ".join(f"{kind} {size / GIB:.2f}" for kind, size in cost.memory.items() if size >= 0.005 * GIB)
    lines = [
        f"{head}, compiled in {cost.compile_seconds:.0f} s",
        f"  memory       {cost.memory_bytes / GIB:.2f} of {chip.memory / GIB:.2f} GiB per device, "
        f"{'fits' if cost.fits else 'DOES NOT FIT'} ({memory})",
        f"  FLOPs        {cost.hardware_flops / 1e12:.2f} T per device, {cost.model_flops / 1e12:.2f} T of them model "
        "FLOPs (without recomputation)",
        f"  HBM traffic  {cost.hbm_bytes / 1e9:.2f} GB per device",
    ]
    for found in cost.collectives:
        group = f"between {'hosts' if gpu else 'slices'}" if found.crosses_slices else f"groups of {found.group_size}"
        lines.append(
            f"  {found.opcode + ':':<20} {found.received_bytes / 1e9:.3f} GB received, {found.calls:.0f} calls, {group}"
        )
    if cost.exposed_bytes:
        received = sum(collective.received_bytes for collective in cost.collectives)
        lines.append(
            f"  exposed      {cost.exposed_bytes / 1e9:.3f} of {received / 1e9:.3f} GB received while no matmul runs"
        )
    names = GPU_INTERCONNECTS if gpu else {}
    times = ", ".join(f"{names.get(n, n)} {format_seconds(value)}" for n, value in cost.seconds.items() if value)
    bound = names.get(cost.bound_by, cost.bound_by)
    lines.append(f"  roofline     {format_seconds(cost.roofline_seconds)}, {bound}-bound ({times}); MFU {cost.mfu:.1%}")
    return "\n".join(lines + suggestions)


def format_seconds(seconds: float) -> str:
    """Seconds as text: 10.8 s, 408 ms."""
    return f"{seconds:.3g} s" if seconds >= 1 else f"{seconds * 1e3:.3g} ms"
