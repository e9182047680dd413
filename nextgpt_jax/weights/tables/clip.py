"""CLIPModel in the hub's layout: both towers and their projections."""

import dataclasses

from nextgpt_jax.weights.rules import CONV, Rule, Table, affine, norm, prefixed, rule
from nextgpt_jax.weights.tables.stable_diffusion import CLIP_LAYERS, TEXT_ENCODER


def _text() -> list[Rule]:
    """Of the text encoder, whose other spelling no file of a whole model has."""
    rows = [dataclasses.replace(row, torch=row.torch[:1]) for row in TEXT_ENCODER.rules]
    return prefixed(rows, flax="text.")


CLIP = Table(
    rules=(
        *_text(),
        *prefixed(
            [
                rule("embeddings.class_embedding", "class_embedding"),
                rule("embeddings.position_embedding.weight", "position_embedding"),
                *affine("embeddings.patch_embedding", "patch_embedding", CONV, bias=False),
                *norm("pre_layrnorm", "pre_layernorm"),  # as it is spelled there
                *CLIP_LAYERS,
                *norm("post_layernorm", "post_layernorm"),
            ],
            torch="vision_model.",
            flax="vision.",
        ),
        *affine("text_projection", "text_projection", bias=False),
        *affine("visual_projection", "visual_projection", bias=False),
    ),
    ignored=(r"(text|vision)_model\.embeddings\.position_ids", "logit_scale"),
)
