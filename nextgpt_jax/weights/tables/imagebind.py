"""ImageBind in the layout of `imagebind_huge.pth`: one state dict for all modalities."""

import re
from collections.abc import Mapping, Sequence

from nextgpt_jax.models.encoders.imagebind import BRANCHES, IMU_SHAPE
from nextgpt_jax.weights.rules import CONV, LINEAR, Rule, Table, Transform, affine, norm, rule

# A linear layer over patches of [channels, samples] is a convolution over time: [out, c k] <-> [k, c, out].
_UNFOLDED = Transform(
    lambda w: CONV.to_flax(w.reshape(len(w), IMU_SHAPE[0], -1)), lambda w: CONV.to_torch(w).reshape(w.shape[-1], -1)
)


def _stem(modality: str) -> list[Rule]:
    source, target = f"modality_preprocessors.{modality}", f"towers.{modality}.stem"
    if modality == "text":
        return [
            rule(f"{source}.token_embedding.weight", f"{target}.token_embedding.embedding"),
            rule(f"{source}.pos_embed", f"{target}.pos_embed"),
        ]
    positions = f"{source}.pos_embed" if modality == "imu" else f"{source}.pos_embedding_helper.pos_embed"
    rows = [rule(f"{source}.cls_token", f"{target}.cls_token"), rule(positions, f"{target}.pos_embed")]
    if modality == "vision":
        return rows + affine(f"{source}.rgbt_stem.proj.1", f"{target}.proj", CONV, bias=False)
    patches = f"{source}.{ {'depth': 'depth_stem', 'imu': 'imu_stem'}.get(modality, 'rgbt_stem') }"
    rows += affine(f"{patches}.proj", f"{target}.proj", _UNFOLDED if modality == "imu" else CONV, bias=False)
    return rows + norm(f"{patches}.norm_layer", f"{target}.norm")


def _trunk(modality: str) -> list[Rule]:
    source, target = f"modality_trunks.{modality}", f"towers.{modality}.trunk"
    block, blocks = f"{source}.blocks.{{i}}", f"{target}.blocks"
    rows = [
        *norm(f"{block}.norm_1", f"{blocks}.norm_1"),
        rule(f"{block}.attn.in_proj_weight", f"{blocks}.attn.in_proj.kernel", LINEAR),
        rule(f"{block}.attn.in_proj_bias", f"{blocks}.attn.in_proj.bias"),
        *affine(f"{block}.attn.out_proj", f"{blocks}.attn.out_proj"),
        *norm(f"{block}.norm_2", f"{blocks}.norm_2"),
        *affine(f"{block}.mlp.fc1", f"{blocks}.fc1"),
        *affine(f"{block}.mlp.fc2", f"{blocks}.fc2"),
    ]
    if modality == "vision":
        return rows + norm(f"{source}.pre_transformer_layer.0", f"{target}.pre_norm")
    if modality == "text":
        return rows
    return rows + [rule(f"{block}.attn.{name}", f"{blocks}.attn.{name}") for name in ("bias_k", "bias_v")]


def _head(modality: str) -> list[Rule]:
    source, target = f"modality_heads.{modality}", f"towers.{modality}"
    first, last = {"text": ("proj.0", "proj.1"), "imu": ("0", "3")}.get(modality, ("0", "2"))
    rows = norm(f"{source}.{first}", f"{target}.norm") + affine(f"{source}.{last}", f"{target}.head", bias=False)
    if modality == "text":
        rows.append(rule("modality_postprocessors.text.1.log_logit_scale", f"{target}.log_logit_scale"))
    return rows


def table(modalities: Sequence[str] = BRANCHES) -> Table:
    """The table of the towers of `modalities`.

    Raises:
      ValueError: ImageBind does not have such a modality.
    """
    if unknown := set(modalities) - set(BRANCHES):
        raise ValueError(f"ImageBind modalities {sorted(unknown)} are not supported (only {list(BRANCHES)})")
    ignored = [
        r"modality_preprocessors\.text\.mask",  # a buffer: the causal mask, which is computed
        r"modality_postprocessors\.(audio|depth|thermal|imu)\.1\.log_logit_scale",  # buffers: constants here
    ]
    if others := "|".join(name for name in BRANCHES if name not in modalities):
        # The file has all modalities, even if not all of them are built.
        ignored.append(rf"modality_(preprocessors|trunks|heads|postprocessors)\.({others})\..*")
    rules = [row for name in modalities for part in (_stem, _trunk, _head) for row in part(name)]
    return Table(rules=tuple(rules), ignored=tuple(ignored))


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Width and depth of each tower of a checkpoint, and the width of the shared space, as fields of the config."""
    found: dict[str, int] = {}
    for key, shape in shapes.items():
        if block := re.fullmatch(r"modality_trunks\.(\w+)\.blocks\.(\d+)\.norm_1\.weight", key):
            name, number = block[1], int(block[2])
            found[f"{name}_embed_dim"] = shape[0]
            found[f"{name}_num_blocks"] = max(found.get(f"{name}_num_blocks", 0), number + 1)
        elif re.fullmatch(r"modality_heads\.\w+\.(proj\.)?[123]\.weight", key) and len(shape) == 2:
            found["out_embed_dim"] = shape[0]
    return {name: size for name, size in found.items() if name.startswith((*BRANCHES, "out"))}
