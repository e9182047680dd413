"""Layers stacked on a leading axis, to run under one scan, and what their backward pass keeps."""

from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import NamedSharding, PartitionSpec

_CARRY = "carry"

# Which intermediates are saved for the backward pass; others are recomputed.
REMAT_POLICIES = {
    "none": jax.checkpoint_policies.everything_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,  # matmul outputs
    "full": jax.checkpoint_policies.nothing_saveable,  # layer inputs only, which the scan saves
    "offload": jax.checkpoint_policies.save_and_offload_only_these_names(  # layer inputs, in host memory
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[_CARRY],
        offload_src="device",
        offload_dst="pinned_host",
    ),
}


def stack(make: Callable[[nnx.Rngs], nnx.Module], n: int, rngs: nnx.Rngs) -> nnx.Module:
    """n copies of make(rngs) as one module whose parameters have a leading layer axis, to run under `scan_layers`."""

    @nnx.split_rngs(splits=n)
    @nnx.vmap(axis_size=n)
    def build(rngs):
        return make(rngs)

    return build(rngs)


def unstack(layers: nnx.Module, *, donate: bool = False) -> nnx.List:
    """Stacked layers, which may be abstract, as a list of single layers.

    On CPUs and GPUs a scan copies each layer's weights out of the stack before it multiplies by them. Single layers
    avoid that, and take longer to compile.

    Args:
      donate: delete each stacked array once it is split, so that no two copies of the weights are in memory.
    """
    graphdef, state = nnx.split(layers)
    leaves, structure = jax.tree.flatten(state)
    n, split = len(leaves[0]), []
    for leaf in leaves:
        split.append(unstack_array(leaf))
        if donate and isinstance(leaf, jax.Array):
            leaf.delete()
    return nnx.List([nnx.merge(graphdef, jax.tree.unflatten(structure, [x[i] for x in split])) for i in range(n)])


def unstack_array(x: jax.Array | jax.ShapeDtypeStruct) -> list:
    """The slices of an array, which may be abstract, along its first axis, with the sharding of the other axes."""
    sharding = getattr(x, "sharding", None)
    if isinstance(sharding, NamedSharding):
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))
    else:
        sharding = None
    if isinstance(x, jax.ShapeDtypeStruct):
        return [jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=sharding)] * len(x)
    return jax.jit(list, out_shardings=sharding)(x)


def scan_layers(
    step: Callable[[Any, nnx.Module, Any], Any],
    carry: Any,
    layers: nnx.Module,
    xs: Any = None,
    *,
    remat: str = "none",
) -> Any:
    """carry = step(carry, layer, x) for each layer, with x along the leading axis of `xs`.

    Args:
      layers: stacked, which runs under one `lax.scan`; or an nnx.List, which runs as a loop.
      remat: a key of REMAT_POLICIES, for stacked layers. "offload" needs an accelerator.
    """
    if isinstance(layers, nnx.List):
        for i, layer in enumerate(layers):
            carry = step(carry, layer, jax.tree.map(lambda x, i=i: x[i], xs))
        return carry
    graphdef, state = nnx.split(layers)

    def body(carry, state_and_x):
        state, x = state_and_x
        if remat == "offload":
            carry = jax.tree.map(lambda leaf: checkpoint_name(leaf, _CARRY), carry)
        return step(carry, nnx.merge(graphdef, state), x), None

    if remat != "none":
        body = jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)  # a scan needs no barriers
    return jax.lax.scan(body, carry, (state, xs))[0]
