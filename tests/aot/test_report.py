"""Cost reports as data and as text."""

import json

import pytest

from nextgpt_jax.aot.report import (
    CollectiveCost,
    CostReport,
    ProgramCost,
    format_program,
    format_report,
    format_seconds,
)
from nextgpt_jax.chips import GIB, chip

V5E, H100 = chip("TPU v5 lite"), chip("NVIDIA H100 80GB HBM3")
GATHER = CollectiveCost("all-gather", 16, False, 21.852e9, 747)
REDUCE = CollectiveCost("all-reduce", 2, True, 0.158e9, 86)


def cost(**changes) -> ProgramCost:
    fields = dict(
        program="stage3", chip=V5E, num_devices=16, batch_size=64,
        memory={"frozen weights": 0.89 * GIB, "batch": 1.0, "temporaries": 1.35 * GIB},
        hardware_flops=80.28e12, model_flops=58.44e12, hbm_bytes=180.31e9, collectives=(GATHER, REDUCE),
        exposed_bytes=1e9, compile_seconds=102.0,
    )  # fmt: skip
    return ProgramCost(**(fields | changes))


def test_as_text():
    assert format_program(cost()).splitlines() == [
        "stage3: batch 64 on 16 x TPU v5e, compiled in 102 s",
        "  memory       2.24 of 15.75 GiB per device, fits (frozen weights 0.89, temporaries 1.35)",
        "  FLOPs        80.28 T per device, 58.44 T of them model FLOPs (without recomputation)",
        "  HBM traffic  180.31 GB per device",
        "  all-gather:          21.852 GB received, 747 calls, groups of 16",
        "  all-reduce:          0.158 GB received, 86 calls, between slices",
        "  exposed      1.000 of 22.010 GB received while no matmul runs",
        "  roofline     408 ms, compute-bound (compute 408 ms, HBM 220 ms, ICI 121 ms, DCN 50.6 ms); MFU 72.8%",
    ]
    text = format_program(cost(chip=H100, memory={"temporaries": 100 * GIB}, suggestions=("sell it", "buy more")))
    assert "100.00 of 72.78 GiB per device, DOES NOT FIT" in text and "between hosts" in text
    assert "NVLink 48.6 ms, network 3.16 ms" in text and text.endswith("  to make it fit: sell it, or buy more")


def test_roofline():
    found = cost()
    assert found.bound_by == "compute" and found.roofline_seconds == found.seconds["compute"] == 80.28e12 / V5E.flops
    assert found.mfu == pytest.approx(58.44 / 80.28)
    assert cost(hbm_bytes=1e12).bound_by == "HBM"


def test_programs_that_the_compiler_rejects():
    found = ProgramCost(
        program="stage3", chip=V5E, num_devices=4, batch_size=8, rejection="too large", suggestions=("shrink",)
    )
    assert not found.fits
    assert format_program(found) == ("stage3: batch 8 on 4 x TPU v5e DOES NOT FIT: too large\n  to make it fit: shrink")
    assert json.loads(json.dumps(found.to_dict()))["rejection"] == "too large"


def test_reports_as_data():
    report = CostReport("v5e:4x4", 1, (cost(), cost(program="decode", memory={"weights": 17 * GIB})))
    assert report["stage3"].fits and not report["decode"].fits and not report.fits
    data = json.loads(json.dumps(report.to_dict()))
    assert (data["topology"], data["num_slices"], data["fits"]) == ("v5e:4x4", 1, False)
    program = data["programs"][0]
    assert program["chip"] == "TPU v5e" and program["memory_bytes"] == pytest.approx(2.24 * GIB)
    assert program["collectives"][0] == {
        "opcode": "all-gather", "group_size": 16, "crosses_slices": False, "received_bytes": 21.852e9, "calls": 747
    }  # fmt: skip
    assert {"fits", "seconds", "roofline_seconds", "bound_by", "mfu"} < program.keys()
    assert str(report) == format_report(report) and format_report(report).count("\n") > 10


def test_seconds_as_text():
    assert [format_seconds(x) for x in (10.84, 0.4079, 1.1e-5)] == ["10.8 s", "408 ms", "0.011 ms"]
