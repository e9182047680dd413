"""Parsing optimized HLO."""

import pytest

from nextgpt_jax.aot.hlo import parse, replica_group, trip_count
from tests.aot.test_hlo_cost import LOOP


def test_computations_and_their_instructions():
    computations, entry = parse(LOOP)
    assert set(computations) == {"body", "sliced", "product", "condition", "main"} and entry == "main"
    gather = computations["body"]["all"]
    assert (gather.opcode, gather.operands, gather.is_root) == ("all-gather", ("slice",), False)
    (result,) = gather.results
    assert (result.dtype, result.shape, result.size, result.in_hbm) == ("bf16", (1, 64, 16), 2 * 64 * 16, True)
    assert not computations["product"]["g"].results[0].in_hbm
    assert computations["body"]["slice"].called("calls") == "sliced"
    loop = computations["main"]["loop"]
    assert loop.is_root and loop.called("body") == "body" and trip_count(loop, computations) == 2


@pytest.mark.parametrize(
    "attributes, group",
    [
        ("replica_groups={{0,2},{1,3}}, x={1}", [0, 2]),
        ("replica_groups=[2,4]<=[8]", [0, 1, 2, 3]),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", [0, 4]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_1'}", [0, 1, 2, 3]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0'}", [0, 4]),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([2,4]T(1,0)) {'b'}, dimensions={0}", [0, 1, 2, 3]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=(3,1,2,0) {'b'}, dimensions={0}", [3, 1]),
        ("source_target_pairs={{3,4},{4,5}}", [3, 4]),
        ("dimensions={0}", []),
    ],
)
def test_replica_groups_in_all_notations(attributes, group):
    assert replica_group(attributes) == group
