"""ImageBind as `imagebind_huge.pth` has it: one state dict with the parts of six modalities."""

from collections.abc import Sequence

from convert.rules import CONV, LINEAR, Table, affine, norm, rule
from nextgpt_jax.imagebind import MODALITIES

_PUBLISHED = ("vision", "text", "audio", "depth", "thermal", "imu")

_STEMS = {
    "vision": (
        rule("modality_preprocessors.vision.cls_token", "towers.vision.stem.cls_token"),
        rule("modality_preprocessors.vision.pos_embedding_helper.pos_embed", "towers.vision.stem.pos_embed"),
        *affine("modality_preprocessors.vision.rgbt_stem.proj.1", "towers.vision.stem.proj", CONV, bias=False),
        *norm("modality_trunks.vision.pre_transformer_layer.0", "towers.vision.trunk.pre_norm"),
    ),
    "text": (
        rule("modality_preprocessors.text.token_embedding.weight", "towers.text.stem.token_embedding.embedding"),
        rule("modality_preprocessors.text.pos_embed", "towers.text.stem.pos_embed"),
    ),
}

_HEADS = {
    "vision": (
        *norm("modality_heads.vision.0", "towers.vision.norm"),
        *affine("modality_heads.vision.2", "towers.vision.head", bias=False),
    ),
    "text": (
        *norm("modality_heads.text.proj.0", "towers.text.norm"),
        *affine("modality_heads.text.proj.1", "towers.text.head", bias=False),
        rule("modality_postprocessors.text.1.log_logit_scale", "towers.text.log_logit_scale"),
    ),
}


def _trunk(modality: str):
    block, blocks = f"modality_trunks.{modality}.blocks.{{i}}", f"towers.{modality}.trunk.blocks"
    return (
        *norm(f"{block}.norm_1", f"{blocks}.norm_1"),
        rule(f"{block}.attn.in_proj_weight", f"{blocks}.attn.in_proj.kernel", LINEAR),
        rule(f"{block}.attn.in_proj_bias", f"{blocks}.attn.in_proj.bias"),
        *affine(f"{block}.attn.out_proj", f"{blocks}.attn.out_proj"),
        *norm(f"{block}.norm_2", f"{blocks}.norm_2"),
        *affine(f"{block}.mlp.fc1", f"{blocks}.fc1"),
        *affine(f"{block}.mlp.fc2", f"{blocks}.fc2"),
    )


def table(modalities: Sequence[str] = MODALITIES) -> Table:
    """The rows of the towers of `modalities`.

    Raises:
      ValueError: a modality that the model does not have.
    """
    if unknown := set(modalities) - set(MODALITIES):
        raise ValueError(f"ImageBind modalities {sorted(unknown)} are not supported (only {list(MODALITIES)})")
    others = "|".join(name for name in _PUBLISHED if name not in modalities)
    ignored = [r"modality_preprocessors\.text\.mask"]  # a buffer: the causal mask, which is computed here
    if others:  # the file holds all six modalities, whichever are built
        ignored.append(rf"modality_(preprocessors|trunks|heads|postprocessors)\.({others})\..*")
    rules = [row for name in modalities for row in (*_STEMS[name], *_trunk(name), *_HEADS[name])]
    return Table(rules=tuple(rules), ignored=tuple(ignored))
