"""Costs from optimized HLO: loops, fusions, library calls, and collectives between devices."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextgpt_jax.aot.hlo_cost import Collective, HloCost, analyze, count_taps


def cost_of(function, *arguments) -> HloCost:
    return analyze(jax.jit(function).lower(*arguments).compile().as_text())


def test_loop_bodies_count_once_per_iteration():
    x, w = jnp.ones((64, 128)), jnp.ones((5, 128, 128))

    def loop(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    assert cost_of(loop, x, w).flops == 5 * 2 * 64 * 128 * 128
    assert cost_of(lambda x, w: x @ w[0], x, w).flops == 2 * 64 * 128 * 128


LOOP = """HloModule m, is_scheduled=true

%body (p: (s32[], bf16[8,16], bf16[4,16,16])) -> (s32[], bf16[8,16], bf16[4,16,16]) {
  %p = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[4,16,16]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=1
  %w = bf16[4,16,16]{2,1,0:T(8,128)(2,1)} get-tuple-element(%p), index=2
  %two = s32[]{:T(128)} constant(2)
  %next = s32[]{:T(128)} add(%i, %two)
  %slice = bf16[1,16,16]{2,1,0:T(8,128)(2,1)} fusion(%w, %i), kind=kLoop, calls=%sliced
  %all = bf16[1,64,16]{2,1,0:T(8,128)(2,1)} all-gather(%slice), channel_id=3, replica_groups=[4,4]<=[16], dimensions={1}
  %y = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} fusion(%x, %slice), kind=kOutput, calls=%product
  ROOT %r = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[4,16,16]{2,1,0:T(8,128)(2,1)}) tuple(%next, %y, %w)
}

%sliced (a: bf16[4,16,16], b: s32[]) -> bf16[1,16,16] {
  %a = bf16[4,16,16]{2,1,0:T(8,128)(2,1)} parameter(0)
  %b = s32[]{:T(128)} parameter(1)
  ROOT %d = bf16[1,16,16]{2,1,0:T(8,128)(2,1)} dynamic-slice(%a, %b, %b, %b), dynamic_slice_sizes={1,16,16}
}

%product (c: bf16[8,16], e: bf16[1,16,16]) -> bf16[8,16] {
  %c = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} parameter(0)
  %e = bf16[1,16,16]{2,1,0:T(8,128)(2,1)} parameter(1)
  %f = bf16[16,16]{1,0:T(8,128)(2,1)} bitcast(%e)
  ROOT %g = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} convolution(%c, %f), dim_labels=bf_io->bf
}

%condition (q: (s32[], bf16[8,16], bf16[4,16,16])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  %q = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[4,16,16]{2,1,0:T(8,128)(2,1)}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %less = pred[]{:T(512)} compare(%j, %limit), direction=LT
}

ENTRY %main (in: (s32[], bf16[8,16], bf16[4,16,16])) -> (s32[], bf16[8,16], bf16[4,16,16]) {
  %in = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[4,16,16]{2,1,0:T(8,128)(2,1)}) parameter(0)
  ROOT %loop = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[4,16,16]{2,1,0:T(8,128)(2,1)}) while(%in), condition=%condition, body=%body
}
"""  # noqa: E501


def test_a_loop_as_the_tpu_compiler_writes_it():
    """Its counter goes up by two to four; slices count as slices; arrays on the chip (S(1)) cost no HBM traffic."""
    work = analyze(LOOP)
    rounds, one_slice = 2, 16 * 16 * 2
    assert work.flops == rounds * 2 * 8 * 16 * 16
    assert work.received == {Collective("all-gather", 4, False): rounds * 3 * one_slice}
    assert work.calls == {Collective("all-gather", 4, False): rounds}
    scalars = rounds * (3 * 4 + 4)  # the counter
    assert work.hbm_bytes == pytest.approx(rounds * (2 + 5 + 1) * one_slice + scalars, abs=16)


NESTED = """HloModule m, is_scheduled=true

%slice (a: bf16[4,16,16], b: s32[]) -> bf16[1,16,16] {
  %a = bf16[4,16,16]{2,1,0} parameter(0)
  %b = s32[] parameter(1)
  ROOT %d = bf16[1,16,16]{2,1,0} dynamic-slice(%a, %b, %b, %b), dynamic_slice_sizes={1,16,16}
}

%product (w: bf16[4,16,16], i: s32[], x: bf16[8,16]) -> bf16[8,16] {
  %w = bf16[4,16,16]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %x = bf16[8,16]{1,0} parameter(2)
  %s = bf16[1,16,16]{2,1,0} fusion(%w, %i), kind=kLoop, calls=%slice
  %k = bf16[16,16]{1,0} bitcast(%s)
  ROOT %y = bf16[8,16]{1,0} convolution(%x, %k), dim_labels=bf_io->bf
}

%put (buffer: bf16[32,16], places: s32[8,1], new: bf16[8,16]) -> (bf16[32,16], f32[8,16]) {
  %buffer = bf16[32,16]{1,0} parameter(0)
  %places = s32[8,1]{1,0} parameter(1)
  %new = bf16[8,16]{1,0} parameter(2)
  %all = bf16[32,16]{1,0} scatter(%buffer, %places, %new), to_apply=%any
  %same = f32[8,16]{1,0} convert(%new)
  ROOT %both = (bf16[32,16]{1,0}, f32[8,16]{1,0}) tuple(%all, %same)
}

ENTRY %main (w: bf16[4,16,16], i: s32[], x: bf16[8,16], c: bf16[32,16], p: s32[8,1]) -> (bf16[32,16], f32[8,16]) {
  %w = bf16[4,16,16]{2,1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %x = bf16[8,16]{1,0} parameter(2)
  %c = bf16[32,16]{1,0} parameter(3)
  %p = s32[8,1]{1,0:S(1)} parameter(4)
  %y = bf16[8,16]{1,0} fusion(%w, %i, %x), kind=kOutput, calls=%product
  ROOT %r = (bf16[32,16]{1,0}, f32[8,16]{1,0}) fusion(%c, %p, %y), kind=kCustom, calls=%put
}
"""


def test_fusions_count_what_they_read_and_write():
    """A slice in a nested fusion, and an in-place update of some rows."""
    rows = 8 * 16 * 2
    product = 16 * 16 * 2 + 2 * rows
    put = rows + rows + 2 * rows  # read, updated, and as float32
    assert analyze(NESTED).hbm_bytes == product + put


MOVED = """HloModule m, is_scheduled=true

%part (a: bf16[4,16,16]) -> bf16[1,16,16] {
  %a = bf16[4,16,16]{2,1,0} parameter(0)
  ROOT %s = bf16[1,16,16]{2,1,0:S(1)} slice(%a), slice={[0:1], [0:16], [0:16]}
}

ENTRY %main (w: bf16[4,16,16], i: s32[], x: bf16[1,16,16]) -> bf16[4,16,16] {
  %w = bf16[4,16,16]{2,1,0} parameter(0)
  %i = s32[]{:S(6)} parameter(1)
  %x = bf16[1,16,16]{2,1,0} parameter(2)
  %begin = ((bf16[4,16,16]{2,1,0}), bf16[1,16,16]{2,1,0:S(1)}, s32[]{:S(2)}) async-start(%w), calls=%part
  %end = bf16[1,16,16]{2,1,0:S(1)} async-done(%begin)
  %here = bf16[1,8,16]{2,1,0:S(1)} slice(%end), slice={[0:1], [0:8], [0:16]}
  %copy = (bf16[1,16,16]{2,1,0:S(1)}, bf16[1,16,16]{2,1,0}, u32[]{:S(2)}) copy-start(%x)
  %done = bf16[1,16,16]{2,1,0:S(1)} copy-done(%copy)
  ROOT %r = bf16[4,16,16]{2,1,0} dynamic-update-slice(%w, %end, %i, %i, %i)
}
"""


def test_copies_between_hbm_and_the_chip_count_once():
    """A slice and a copy from HBM, a slice on the chip, and an update in HBM."""
    assert analyze(MOVED).hbm_bytes == 3 * 16 * 16 * 2


MATMUL = (
    '(bf16[16,32]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", '
    'backend_config={"gemm_backend_config":{"dot_dimension_numbers":'
    '{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}'
)
CONVOLUTION = (
    "({results}) custom-call({operands}), window={{size=3x3 pad=1_1x1_1}}, dim_labels=b01f_o01i->b01f, "
    'custom_call_target="__cudnn$conv{name}", backend_config={{}}'
)
ATTENTION = (
    "(bf16[2,4,6,16]{3,1,2,0}, f32[2,4,6]{2,1,0}, u8[0]{0}) custom-call(%q, %s, %s), "
    'custom_call_target="__cudnn$fmhaSoftmax", backend_config={}'
)
ATTENTION_BACKWARD = (
    "(bf16[2,4,6,16]{3,1,2,0}, bf16[2,4,10,16]{3,1,2,0}, bf16[2,4,10,16]{3,1,2,0}, u8[0]{0}) "
    "custom-call(%q, %s, %s, %stat, %q, /*index=5*/%q), "
    'custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={}'
)
PARAMETERS = {
    "a": "bf16[16,64]{1,0}", "b": "bf16[64,32]{1,0}", "x": "bf16[2,9,9,4]{3,2,1,0}", "y": "bf16[2,9,9,8]{3,2,1,0}",
    "k": "bf16[8,3,3,4]{3,2,1,0}", "q": "bf16[2,6,4,16]{3,2,1,0}", "s": "bf16[2,10,4,16]{3,2,1,0}",
    "stat": "f32[2,4,6]{2,1,0}",
}  # fmt: skip


def cost_of_call(call: str) -> HloCost:
    """The costs of a module with one instruction, as the GPU compiler writes it."""
    parameters = [f"  %{name} = {shape} parameter({i})" for i, (name, shape) in enumerate(PARAMETERS.items())]
    lines = ["HloModule m, is_scheduled=true", "", "ENTRY %main () -> f32[] {", *parameters, f"  ROOT %r = {call}", "}"]
    return analyze("\n".join(lines))


def test_calls_of_cublas():
    found = cost_of_call(MATMUL)
    assert found.flops == 2 * 16 * 64 * 32
    assert found.hbm_bytes == 2 * (16 * 64 + 64 * 32 + 16 * 32)  # without the workspace
    assert cost_of_call('bf16[16,32]{1,0} custom-call(%a), custom_call_target="mine"').flops == 0


@pytest.mark.parametrize(
    "name, results, operands",
    [
        ("Forward", "bf16[2,9,9,8]{3,2,1,0}, u8[1024]{0}", "%x, %k"),
        ("BackwardInput", "bf16[2,9,9,4]{3,2,1,0}, u8[0]{0}", "%y, %k"),
        ("BackwardFilter", "bf16[8,3,3,4]{3,2,1,0}, u8[0]{0}", "%x, %y"),
    ],
)
def test_convolutions_by_cudnn(name, results, operands):
    taps = (9 * 3 - 2) ** 2  # without those in the padding
    found = cost_of_call(CONVOLUTION.format(name=name, results=results, operands=operands))
    assert found.flops == 2 * 2 * 8 * 4 * taps


def test_attention_by_cudnn():
    matmul = 2 * (2 * 4) * 6 * 10 * 16
    assert cost_of_call(ATTENTION).flops == 2 * matmul
    assert cost_of_call(ATTENTION_BACKWARD).flops == 5 * matmul


OVERLAP = """HloModule m, is_scheduled=true

%inner (c: bf16[4,16]) -> bf16[16,16] {
  %c = bf16[4,16]{1,0} parameter(0)
  ROOT %g = bf16[16,16]{1,0} all-gather(%c), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (a: bf16[16,16], b: bf16[4,16]) -> bf16[16,16] {
  %a = bf16[16,16]{1,0} parameter(0)
  %b = bf16[4,16]{1,0} parameter(1)
  %beside = (bf16[4,16]{1,0}, bf16[16,16]{1,0}) all-gather-start(%b), channel_id=1, replica_groups={{0,1,2,3}}, dimensions={0}
  %product = bf16[16,16]{1,0} dot(%a, %a), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %first = bf16[16,16]{1,0} all-gather-done(%beside)
  %alone = (bf16[4,16]{1,0}, bf16[16,16]{1,0}) all-gather-start(%b), channel_id=2, replica_groups={{0,1,2,3}}, dimensions={0}
  %sum = bf16[16,16]{1,0} add(%product, %first)
  %second = bf16[16,16]{1,0} all-gather-done(%alone)
  %wrapped = ((bf16[4,16]{1,0}), bf16[16,16]{1,0}) async-start(%b), calls=%inner
  %again = bf16[16,16]{1,0} dot(%sum, %second), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %third = bf16[16,16]{1,0} async-done(%wrapped)
  ROOT %last = bf16[4,16]{1,0} reduce-scatter(%third), channel_id=4, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%add
}
"""  # noqa: E501


def test_bytes_received_with_no_matmul_running_are_exposed():
    """Neither the first gather nor the wrapped one."""
    gathered, scattered = 3 * 4 * 16 * 2, 16 * 16 * 2 * 3 / 4
    found = analyze(OVERLAP)
    assert sum(found.received.values()) == 3 * gathered + scattered
    assert found.exposed_bytes == gathered + scattered


def test_collectives_between_slices_are_listed_separately():
    between = LOOP.replace("replica_groups=[4,4]<=[16]", "replica_groups=[8,2]<=[2,8]T(1,0)")
    assert set(analyze(between, devices_per_slice=8).received) == {Collective("all-gather", 2, True)}
    assert set(analyze(LOOP, devices_per_slice=8).received) == {Collective("all-gather", 4, False)}


BETWEEN = """HloModule m, is_scheduled=true

ENTRY %main (x: bf16[32,8,128]) -> bf16[32,8,128] {
  %x = bf16[32,8,128]{2,1,0:T(8,128)(2,1)} parameter(0)
  %after-all = token[] after-all()
  %send = (bf16[32,8,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) send(%x, %after-all), channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_target="{TARGET}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (bf16[32,8,128]{2,1,0:T(8,128)(2,1)}, u32[]{:S(2)}, token[]) recv(%after-all), channel_id=1, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_host_transfer_rendezvous="all-reduce.1_0",_xla_megascale_target="{TARGET}x{0:15}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv-done = (bf16[32,8,128]{2,1,0:T(8,128)(2,1)}, token[]) recv-done(%recv), channel_id=1, is_host_transfer=true
  %send-done = token[] send-done(%send), channel_id=2, is_host_transfer=true
  ROOT %y = bf16[32,8,128]{2,1,0:T(8,128)(2,1)} get-tuple-element(%recv-done), index=0
}
"""  # noqa: E501


@pytest.mark.parametrize("target, slices", [("1,2", 2), ("0:3", 4), ("0:1,4:5", 4)])
def test_host_transfers_are_collectives_between_slices(target, slices):
    work = analyze(BETWEEN.replace("TARGET", target), devices_per_slice=16)
    assert work.received == {Collective("all-reduce", slices, True): 32 * 8 * 128 * 2}


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_multiplications_with_padding_are_not_counted(size, kernel, low, stride, dilation, spread):
    """The reference is the sum of a convolution of ones."""
    reach = (kernel - 1) * dilation + 1
    high = max(0, reach - (size - 1) * spread - 1 - low) + low
    found = jax.lax.conv_general_dilated(
        np.ones((1, 1, size), np.float32), np.ones((1, 1, kernel), np.float32), (stride,), [(low, high)], (spread,),
        (dilation,),
    )  # fmt: skip
    assert count_taps(size, kernel, found.shape[-1], low, stride, dilation, spread) == int(found.sum())


PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from nextgpt_jax.config import MeshConfig
from nextgpt_jax.aot.hlo_cost import analyze
from nextgpt_jax.mesh import make_mesh
mesh = make_mesh(MeshConfig(data=2, fsdp=4))
with jax.set_mesh(mesh):
    total = jax.shard_map(lambda x: jax.lax.psum(x, "fsdp"), in_specs=P("fsdp"), out_specs=P())
    text = jax.jit(total).lower(jnp.ones((4, 1000))).compile().as_text()
for kind, size in analyze(text).received.items():
    print(kind.opcode, kind.group_size, size)
"""


def test_a_compiled_all_reduce(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.split() == ["all-reduce", "4", str(1000 * 4 * 2 * 3 / 4)], done.stderr
