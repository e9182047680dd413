"""AudioLDM's .ckpt. Its UNet and autoencoder are named as Stable Diffusion's, its text encoder is inside CLAP."""

import dataclasses
import re

from nextgpt_jax.weights.rules import Rule, Table, prefixed
from nextgpt_jax.weights.tables import audioldm

CLAP, VOCODER = "cond_stage_model.", "first_stage_model.vocoder."
_RENAMED = (  # the hub's names, and CLAP's
    (r"text_model\.", "model.text_branch."),
    (r"text_projection\.linear1\.", "model.text_projection.0."),
    (r"text_projection\.linear2\.", "model.text_projection.2."),
    (r"upsampler\.", "ups."),
)
_UNUSED = (  # the audio tower, heads of the training, and buffers
    r"cond_stage_model\.(?!model\.text_(branch|projection)\.).*",
    r"cond_stage_model\.model\.text_branch\.embeddings\.(position|token_type)_ids",
)


def _rename(rule: Rule) -> Rule:
    (key,) = rule.torch
    for pattern, name in _RENAMED:
        key = re.sub(f"^{pattern}", name, key)
    return dataclasses.replace(rule, torch=(key,))


def text_encoder_table() -> Table:
    """The table of CLAP's text tower and its projection."""
    return Table(tuple(prefixed([_rename(r) for r in audioldm.TEXT_ENCODER.rules], torch=CLAP)), _UNUSED)


def vocoder_table() -> Table:
    """The table of the vocoder, with or without weight norm."""
    rules = tuple(prefixed([_rename(r) for r in audioldm.VOCODER.rules], torch=VOCODER))
    return Table(rules, preprocess=audioldm.fold_weight_norm)
