"""Stable Diffusion 1 and 2 in one file, with the keys of the original latent diffusion code.

Unlike the hub's layout, UNet and autoencoder number their layers through: which block a layer belongs to depends on the
sizes, so the tables are made for a config.
"""

import dataclasses
import re

from nextgpt_jax.models.diffusion.clip_text import CLIPTextConfig
from nextgpt_jax.models.diffusion.unet_2d import UNet2DConfig
from nextgpt_jax.models.diffusion.vae import AutoencoderKLConfig
from nextgpt_jax.weights.rules import CONV, LINEAR, POINTWISE, Rule, Table, affine, norm, prefixed, rule
from nextgpt_jax.weights.tables import stable_diffusion
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor

UNET, VAE = "model.diffusion_model.", "first_stage_model."
CLIP, OPEN_CLIP = "cond_stage_model.transformer.", "cond_stage_model.model."


def unet_table(config: UNet2DConfig) -> Table:
    """The table of a UNet, with or without a class embedding (AudioLDM's `film_emb`)."""
    layers, levels = config.layers_per_block, len(config.block_out_channels)
    projection = LINEAR if config.use_linear_projection else POINTWISE
    rows = affine("input_blocks.0.0", "conv_in", CONV)
    for i in (0, 2):
        rows += affine(f"time_embed.{i}", f"time_embedding.linear_{i // 2 + 1}")
    rows += affine("film_emb", "class_embedding")
    for i, kind in enumerate(config.down_block_types):
        for j in range(layers):
            number = 1 + i * (layers + 1) + j
            rows += _resnet(f"input_blocks.{number}.0", f"down_blocks.{i}.resnets.{j}")
            if kind.startswith("CrossAttn"):
                attention = f"down_blocks.{i}.attentions.{j}"
                rows += stable_diffusion.transformer(f"input_blocks.{number}.1", attention, projection)
        if i < levels - 1:
            rows += affine(f"input_blocks.{(i + 1) * (layers + 1)}.0.op", f"down_blocks.{i}.downsampler.conv", CONV)
    rows += _resnet("middle_block.0", "mid_block.resnets.0")
    rows += stable_diffusion.transformer("middle_block.1", "mid_block.attentions.0", projection)
    rows += _resnet("middle_block.2", "mid_block.resnets.1")
    for i, kind in enumerate(config.up_block_types):
        attends = kind.startswith("CrossAttn")
        for j in range(layers + 1):
            number = i * (layers + 1) + j
            rows += _resnet(f"output_blocks.{number}.0", f"up_blocks.{i}.resnets.{j}")
            if attends:
                attention = f"up_blocks.{i}.attentions.{j}"
                rows += stable_diffusion.transformer(f"output_blocks.{number}.1", attention, projection)
        if i < levels - 1:
            last = f"output_blocks.{(i + 1) * (layers + 1) - 1}.{2 if attends else 1}"
            rows += affine(f"{last}.conv", f"up_blocks.{i}.upsampler.conv", CONV)
    rows += norm("out.0", "conv_norm_out")
    rows += affine("out.2", "conv_out", CONV)
    # Each of these transformers has one block; without an index, a rule is compared instead of searched for.
    rows = [dataclasses.replace(r, torch=(r.torch[0].format(k=0),), flax=r.flax.format(k=0)) for r in rows]
    return Table(tuple(prefixed(rows, torch=UNET)))


def _resnet(torch: str, flax: str) -> list[Rule]:
    return [
        *norm(f"{torch}.in_layers.0", f"{flax}.norm1"),
        *affine(f"{torch}.in_layers.2", f"{flax}.conv1", CONV),
        *affine(f"{torch}.emb_layers.1", f"{flax}.time_emb_proj"),
        *norm(f"{torch}.out_layers.0", f"{flax}.norm2"),
        *affine(f"{torch}.out_layers.3", f"{flax}.conv2", CONV),
        *affine(f"{torch}.skip_connection", f"{flax}.conv_shortcut", POINTWISE),
    ]


def vae_table(config: AutoencoderKLConfig) -> Table:
    """The table of an autoencoder. The decoder's levels are numbered from the finest one."""
    levels = len(config.block_out_channels)
    rows = []
    for half, blocks, sampler in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        rows += affine(f"{half}.conv_in", f"{half}.conv_in", CONV)
        for i in range(levels):
            level = f"{half}.{blocks}.{i if blocks == 'down' else levels - 1 - i}"
            block = f"{half}.{blocks}_blocks.{i}"
            rows += _vae_resnet(f"{level}.block.{{j}}", f"{block}.resnets.{{j}}")
            rows += affine(f"{level}.{sampler}.conv", f"{block}.{sampler}r.conv", CONV)
        for j in range(2):
            rows += _vae_resnet(f"{half}.mid.block_{j + 1}", f"{half}.mid_block.resnets.{j}")
        attention, flax = f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"
        rows += norm(f"{attention}.norm", f"{flax}.group_norm")
        for name, target in (("q", "to_q"), ("k", "to_k"), ("v", "to_v"), ("proj_out", "to_out")):
            rows += affine(f"{attention}.{name}", f"{flax}.{target}", POINTWISE)
        rows += norm(f"{half}.norm_out", f"{half}.conv_norm_out")
        rows += affine(f"{half}.conv_out", f"{half}.conv_out", CONV)
    rows += affine("quant_conv", "quant_conv", POINTWISE) + affine("post_quant_conv", "post_quant_conv", POINTWISE)
    ignored = (re.escape(VAE) + r"(loss|model_ema)\..*",)  # of its training
    return Table(tuple(prefixed(rows, torch=VAE)), ignored, preprocess=_as_convolutions)


def _vae_resnet(torch: str, flax: str) -> list[Rule]:
    return [
        row
        for n in "12"
        for row in (*norm(f"{torch}.norm{n}", f"{flax}.norm{n}"), *affine(f"{torch}.conv{n}", f"{flax}.conv{n}", CONV))
    ] + affine(f"{torch}.nin_shortcut", f"{flax}.conv_shortcut", POINTWISE)


_MID_ATTENTION = re.compile(r".*\.mid\.attn_1\.(q|k|v|proj_out)\.weight")


def _as_convolutions(checkpoint: Checkpoint) -> Checkpoint:
    """Files that were converted back from the hub's layout have these projections as linear maps."""
    changed = {
        key: Tensor((*t.shape, 1, 1), t.dtype, lambda t=t: t.read()[:, :, None, None])
        for key, t in checkpoint.tensors.items()
        if len(t.shape) == 2 and _MID_ATTENTION.fullmatch(key)
    }
    return checkpoint.with_tensors(checkpoint.tensors | changed)


def clip_table() -> Table:
    """The table of CLIP's text encoder, as transformers names its layers."""
    table = stable_diffusion.TEXT_ENCODER
    ignored = tuple(re.escape(CLIP) + pattern for pattern in table.ignored)
    return Table(tuple(prefixed(list(table.rules), torch=CLIP)), (*ignored, r"cond_stage_model\.logit_scale"))


def open_clip_table(config: CLIPTextConfig) -> Table:
    """The table of OpenCLIP's text encoder. Stable Diffusion 2 reads the output of the last layer but one: neither the
    last one nor the projection after it is part of the model."""
    layer = "transformer.resblocks.{i}"
    rows = [
        rule("token_embedding.weight", "token_embedding.embedding"),
        rule("positional_embedding", "position_embedding.embedding"),
        *(
            row
            for name in ("q_proj", "k_proj", "v_proj", "out_proj")
            for row in affine(f"{layer}.attn.{name}", f"layers.self_attn.{name}")
        ),
        *affine(f"{layer}.mlp.c_fc", "layers.fc1"),
        *affine(f"{layer}.mlp.c_proj", "layers.fc2"),
        *(row for n in "12" for row in norm(f"{layer}.ln_{n}", f"layers.layer_norm{n}")),
        *norm("ln_final", "final_layer_norm"),
    ]
    unused = rf"(transformer\.resblocks\.{config.num_hidden_layers}\..*|text_projection|logit_scale|attn_mask)"
    return Table(tuple(prefixed(rows, torch=OPEN_CLIP)), (re.escape(OPEN_CLIP) + unused,), preprocess=split_attention)


def split_attention(checkpoint: Checkpoint) -> Checkpoint:
    """Replaces `attn.in_proj_weight` and `attn.in_proj_bias` [3 d, ...] by those of q_proj, k_proj and v_proj [d, ...].
    Tensors whose rows do not divide by three are kept, and so reported as unexpected."""
    tensors = dict(checkpoint.tensors)
    for key, fused in checkpoint.tensors.items():
        found = re.fullmatch(r"(.*\.attn\.)in_proj_(weight|bias)", key)
        if found and fused.shape and fused.shape[0] % 3 == 0:
            del tensors[key]
            rows = fused.shape[0] // 3
            for i, name in enumerate("qkv"):
                tensors[f"{found[1]}{name}_proj.{found[2]}"] = _rows(fused, i * rows, rows)
    return checkpoint.with_tensors(tensors)


def _rows(whole: Tensor, first: int, count: int) -> Tensor:
    return Tensor((count, *whole.shape[1:]), whole.dtype, lambda: whole.read()[first : first + count])
