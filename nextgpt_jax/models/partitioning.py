"""Where the parameters of a NExT-GPT model are on a mesh: the rows of its families in one strict table."""

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from nextgpt_jax import sharding
from nextgpt_jax.errors import UserError
from nextgpt_jax.mesh import data_parallel_mesh
from nextgpt_jax.models import quantize, registry
from nextgpt_jax.models.nextgpt import NExTGPTConfig, NExTGPTModel
from nextgpt_jax.sharding import Rows, parameter_spec, prefixed


def parameter_rows(cfg: NExTGPTConfig) -> Rows:
    """The sharding rows of all parameters of a model."""
    rows = prefixed("llm", registry.family_of(cfg.llm).sharding)
    rows += ((r"signal_(embed|head)", (None, "embed")),)
    for encoder in cfg.encoders:
        rows += prefixed(rf"encoders\.{registry.kind_of(encoder)}", registry.family_of(encoder).sharding)
        path = "input_proj" if len(cfg.encoders) == 1 else rf"input_proj\.{registry.kind_of(encoder)}"
        rows += prefixed(path, registry.INPUT_PROJECTORS[cfg.input_projector].sharding)
    for group, configs in (("output_proj", cfg.output_projectors), ("decoders", cfg.decoders)):
        for name, config in configs:
            rows += prefixed(rf"{group}\.{name}", registry.family_of(config).sharding)
    return rows


def with_shardings(cfg: NExTGPTConfig, state: nnx.State, mesh: Mesh) -> nnx.State:
    """An abstract state of a model, or of some of its parameters, with shardings on the mesh.

    Raises:
      UserError: the mesh does not fit the model.
    """
    heads = {"attention heads": cfg.llm.num_attention_heads, "key/value heads": cfg.llm.num_key_value_heads}
    sharding.validate_heads(mesh, **heads)
    if cfg.quantize:
        width, inner = cfg.llm.hidden_size, cfg.llm.intermediate_size
        for axis, n in (("fsdp", width), ("tensor", width), ("tensor", inner)):  # the inputs that each axis shards
            size, devices = quantize.block_size(n, cfg.quantize), mesh.shape[axis]
            if size < n and (n // devices) % size:
                raise UserError(
                    f"model.quantize={cfg.quantize}: config.mesh.{axis}={devices} cuts the blocks of {size} inputs "
                    f"that share a scale (of {n} inputs): take int8, or another size"
                )
    return sharding.with_shardings(state, mesh, parameter_rows(cfg))


def move_to_data_parallel(model: NExTGPTModel, mesh: Mesh) -> None:
    """Moves the encoders and decoders of a model, which may be abstract, to `data_parallel_mesh(mesh)`, in place.

    JAX refuses programs with cuDNN's attention whose arrays are on two meshes, even if they differ only in axis names.
    """
    if mesh.shape["tensor"] == 1:
        return
    mesh, rows = data_parallel_mesh(mesh), parameter_rows(model.config)

    def moved(path, leaf):
        spec = parameter_spec(".".join(map(str, path)), leaf.shape, mesh, rows)
        value, target = leaf.get_raw_value(), NamedSharding(mesh, spec)
        if isinstance(value, jax.ShapeDtypeStruct):
            return leaf.replace(jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=target))
        return leaf.replace(jax.device_put(value, target))

    state = nnx.state(model, lambda path, _: path[0] in ("encoders", "decoders"))
    nnx.update(model, nnx.from_flat_state([(path, moved(path, leaf)) for path, leaf in nnx.to_flat_state(state)]))
