"""Reading compiled programs: the same work, whether written out or in loops, and the exchanges between devices."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextgpt_jax.aot import hlo
from nextgpt_jax.aot.hlo import Collective, _taps, analyse, parse, replica_group


def work_of(function, *arguments) -> hlo.Work:
    return analyse(jax.jit(function).lower(*arguments).compile().as_text())


def test_loops_count_by_their_length():
    x, w = jnp.ones((64, 128)), jnp.ones((5, 128, 128))

    def loop(x, w):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    assert work_of(loop, x, w).flops == 5 * 2 * 64 * 128 * 128
    assert work_of(lambda x, w: x @ w[0], x, w).flops == 2 * 64 * 128 * 128


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
    """Its counter goes up by two to four; slices count as slices; what lies on the chip (S(1)) costs no traffic."""
    work = analyse(LOOP)
    rounds, one_slice = 2, 16 * 16 * 2
    assert work.flops == rounds * 2 * 8 * 16 * 16
    assert work.collectives == {Collective("all-gather", 4, False): rounds * 3 * one_slice}
    assert work.count == {Collective("all-gather", 4, False): rounds}
    scalars = rounds * (3 * 4 + 4)  # the counter
    assert work.bytes == pytest.approx(rounds * (2 + 5 + 1) * one_slice + scalars, abs=16)
    assert set(parse(LOOP)[0]) == {"body", "sliced", "product", "condition", "main"}


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
    """A slice that a fusion within takes of its argument, and rows that are put into a buffer in place."""
    rows = 8 * 16 * 2
    product = 16 * 16 * 2 + 2 * rows
    put = rows + rows + 2 * rows  # read, put, and as float32
    assert analyse(NESTED).bytes == product + put


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


def test_what_moves_between_memory_and_the_chip_counts_once():
    """A slice and a copy that are brought onto the chip, a slice there, and one that is put back."""
    assert analyse(MOVED).bytes == 3 * 16 * 16 * 2


GPU = """HloModule m, is_scheduled=true

ENTRY %main (a: bf16[16,64], b: bf16[64,32], x: bf16[2,9,9,4], k: bf16[8,3,3,4], q: bf16[2,6,4,16], s: bf16[2,10,4,16]) -> bf16[16,32] {
  %a = bf16[16,64]{1,0} parameter(0)
  %b = bf16[64,32]{1,0} parameter(1)
  %x = bf16[2,9,9,4]{3,2,1,0} parameter(2)
  %k = bf16[8,3,3,4]{3,2,1,0} parameter(3)
  %q = bf16[2,6,4,16]{3,2,1,0} parameter(4)
  %s = bf16[2,10,4,16]{3,2,1,0} parameter(5)
  %product = (bf16[16,32]{1,0}, s8[4194304]{0}) custom-call(%a, %b), custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %conv = (bf16[2,9,9,8]{3,2,1,0}, u8[1024]{0}) custom-call(%x, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward", backend_config={}
  %y = bf16[2,9,9,8]{3,2,1,0} get-tuple-element(%conv), index=0
  %of_input = (bf16[2,9,9,4]{3,2,1,0}, u8[0]{0}) custom-call(%y, %k), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput", backend_config={}
  %of_kernel = (bf16[8,3,3,4]{3,2,1,0}, u8[0]{0}) custom-call(%x, %y), window={size=3x3 pad=1_1x1_1}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter", backend_config={}
  %attention = (bf16[2,4,6,16]{3,1,2,0}, f32[2,4,6]{2,1,0}, u8[0]{0}) custom-call(%q, %s, %s), custom_call_target="__cudnn$fmhaSoftmax", backend_config={}
  %stat = f32[2,4,6]{2,1,0} get-tuple-element(%attention), index=1
  %backward = (bf16[2,4,6,16]{3,1,2,0}, bf16[2,4,10,16]{3,1,2,0}, bf16[2,4,10,16]{3,1,2,0}, u8[0]{0}) custom-call(%q, %s, %s, %stat, %q, /*index=5*/%q), custom_call_target="__cudnn$fmhaSoftmaxBackward", backend_config={}
  %other = bf16[16,32]{1,0} custom-call(%a), custom_call_target="mine"
  ROOT %r = bf16[16,32]{1,0} get-tuple-element(%product), index=0
}
"""  # noqa: E501


def test_calls_of_libraries_as_the_gpu_compiler_writes_them():
    computations, entry = parse(GPU)
    analysis = hlo._Analysis(computations, 0)
    found = {name: analysis._instruction(i, computations[entry], set()) for name, i in computations[entry].items()}
    assert found["product"].flops == 2 * 16 * 64 * 32
    assert found["product"].bytes == 2 * (16 * 64 + 64 * 32 + 16 * 32)  # not the room to work in
    taps = (9 * 3 - 2) ** 2  # those that meet the padding are not counted
    convolution = 2 * 2 * 8 * 4 * taps
    assert [found[name].flops for name in ("conv", "of_input", "of_kernel")] == [convolution] * 3
    attention = 2 * (2 * 4) * 6 * 10 * 16
    assert (found["attention"].flops, found["backward"].flops) == (2 * attention, 5 * attention)
    assert found["other"].flops == 0
    assert analyse(GPU).flops == sum(work.flops for work in found.values())


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


def test_what_arrives_with_no_product_beside_it_is_exposed():
    """Neither the first gather nor the wrapped one."""
    gathered, scattered = 3 * 4 * 16 * 2, 16 * 16 * 2 * 3 / 4
    found = analyse(OVERLAP)
    assert sum(found.collectives.values()) == 3 * gathered + scattered
    assert found.exposed == gathered + scattered


def test_exchanges_between_slices_are_told_apart():
    between = LOOP.replace("replica_groups=[4,4]<=[16]", "replica_groups=[8,2]<=[2,8]T(1,0)")
    assert set(analyse(between, slice_devices=8).collectives) == {Collective("all-gather", 2, True)}
    assert set(analyse(LOOP, slice_devices=8).collectives) == {Collective("all-gather", 4, False)}


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
def test_what_goes_through_the_hosts_is_between_slices(target, slices):
    work = analyse(BETWEEN.replace("TARGET", target), slice_devices=16)
    assert work.collectives == {Collective("all-reduce", slices, True): 32 * 8 * 128 * 2}


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
def test_groups_in_all_spellings(attributes, group):
    assert replica_group(attributes) == group


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 3), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3))
def test_products_with_padding_are_not_counted(size, kernel, low, stride, dilation, spread):
    """As many as an input of ones gives."""
    reach = (kernel - 1) * dilation + 1
    high = max(0, reach - (size - 1) * spread - 1 - low) + low
    found = jax.lax.conv_general_dilated(
        np.ones((1, 1, size), np.float32), np.ones((1, 1, kernel), np.float32), (stride,), [(low, high)], (spread,),
        (dilation,),
    )  # fmt: skip
    assert _taps(size, kernel, found.shape[-1], low, stride, dilation, spread) == int(found.sum())


PROGRAM = """
import jax, jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from nextgpt_jax.config import MeshConfig
from nextgpt_jax.aot.hlo import analyse
from nextgpt_jax.sharding import make_mesh
mesh = make_mesh(MeshConfig(data=2, fsdp=4))
with jax.set_mesh(mesh):
    total = jax.shard_map(lambda x: jax.lax.psum(x, "fsdp"), in_specs=P("fsdp"), out_specs=P())
    text = jax.jit(total).lower(jnp.ones((4, 1000))).compile().as_text()
for kind, size in analyse(text).collectives.items():
    print(kind.kind, kind.devices, size)
"""


def test_a_real_exchange(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.stdout.split() == ["all-reduce", "4", str(1000 * 4 * 2 * 3 / 4)], done.stderr
