"""The projections of a NExT-GPT checkpoint. Keys of the output projections are relative: in a checkpoint they have a
prefix per modality, such as `gen_text_hidden_fcs.0.`."""

import re
from collections.abc import Mapping

from nextgpt_jax.weights.rules import LINEAR, Table, affine, norm, rule

_INPUT_LINEAR = Table(rules=tuple(affine(("llama_proj", "mm_input_projector"), "layers.0")))

_INPUT_MLP = Table(  # an nn.Sequential with the activation at 1
    rules=(
        *affine(("llama_proj.0", "mm_input_projector.0"), "layers.0"),
        *affine(("llama_proj.2", "mm_input_projector.2"), "layers.1"),
    )
)


def _packed(torch: str, flax: str):
    return (
        rule(f"{torch}.in_proj_weight", f"{flax}.in_proj.kernel", LINEAR),
        rule(f"{torch}.in_proj_bias", f"{flax}.in_proj.bias"),
        *affine(f"{torch}.out_proj", f"{flax}.out_proj"),
    )


def _stack(side: str, attentions: tuple[str, ...], norms: tuple[str, ...]):
    layer = f"tfm.{side}.layers.{{i}}"
    return (
        *(row for name in attentions for row in _packed(f"{layer}.{name}", f"{side}.{name}")),
        *affine(f"{layer}.linear1", f"{side}.linear1"),
        *affine(f"{layer}.linear2", f"{side}.linear2"),
        *(row for name in norms for row in norm(f"{layer}.{name}", f"{side}.{name}")),
        *norm(f"tfm.{side}.norm", f"{side}_norm"),
    )


_TRANSFORMER = Table(
    rules=(
        rule("query_embs", "query_embs"),
        *affine("fc", "fc"),
        *_stack("encoder", ("self_attn",), ("norm1", "norm2")),
        *_stack("decoder", ("self_attn", "multihead_attn"), ("norm1", "norm2", "norm3")),
        *affine("model", "model"),
    )
)


def _bert_attention(name: str):
    block = f"Qformer.bert.encoder.layer.{{i}}.{name}"
    return (
        *(row for part in ("query", "key", "value") for row in affine(f"{block}.self.{part}", f"layers.{name}.{part}")),
        *affine(f"{block}.output.dense", f"layers.{name}.dense"),
        *norm(f"{block}.output.LayerNorm", f"layers.{name}.norm"),
    )


_QFORMER = Table(
    rules=(
        rule("query_tokens", "query_tokens"),
        *affine("fc", "fc"),
        *norm("Qformer.bert.embeddings.LayerNorm", "norm"),
        *_bert_attention("attention"),
        *_bert_attention("crossattention"),
        *affine("Qformer.bert.encoder.layer.{i}.intermediate_query.dense", "layers.intermediate"),
        *affine("Qformer.bert.encoder.layer.{i}.output_query.dense", "layers.output"),
        *norm("Qformer.bert.encoder.layer.{i}.output_query.LayerNorm", "layers.norm"),
        *affine("model", "model"),
    ),
    ignored=(r"Qformer\.bert\.embeddings\.position_ids",),  # a buffer of indices; queries have no positions
)

INPUT = {"linear": _INPUT_LINEAR, "mlp": _INPUT_MLP}
OUTPUT = {"transformer": _TRANSFORMER, "qformer": _QFORMER, "linear": Table(rules=tuple(affine("model", "model")))}


def input_kind(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """The kind of a checkpoint's input projection, by keys of the whole checkpoint; "": it has none."""
    keys = [match[1] for key in shapes if (match := re.search(r"(?:llama_proj|mm_input_projector)\.(.+)", key))]
    if not keys:
        return ""
    return "linear" if "weight" in keys else "mlp"


def output_kind(shapes: Mapping[str, tuple[int, ...]]) -> tuple[str, dict[str, int]]:
    """The kind of an output projection, by its relative keys, and those fields of its config that they show."""
    shown = {
        "transformer": ("tfm.encoder.layers", "linear1"),
        "qformer": ("Qformer.bert.encoder.layer", "intermediate_query.dense"),
    }
    for kind, (layer, wide) in shown.items():
        layers = {int(m[1]) for key in shapes if (m := re.match(rf"{re.escape(layer)}\.(\d+)\.", key))}
        rows = {
            "hidden_dim": shapes.get("fc.weight", ()),
            "feedforward_dim": shapes.get(f"{layer}.0.{wide}.weight", ()),
        }
        if layers:
            sizes = {name: shape[0] for name, shape in rows.items() if len(shape) == 2}
            return kind, {"num_layers": max(layers) + 1, **sizes}
    return ("linear" if shapes.keys() <= {"model.weight", "model.bias"} else ""), {}
