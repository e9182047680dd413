"""Stable Diffusion's text encoder, UNet and autoencoder in the hub's layout."""

from nextgpt_jax.models.diffusion.stable_diffusion import StableDiffusionConfig
from nextgpt_jax.models.diffusion.unet_2d import UNet2DConfig
from nextgpt_jax.weights.rules import CONV, LINEAR, POINTWISE, Rule, Table, Transform, affine, norm, prefixed, rule

_CLIP_LAYER = "encoder.layers.{i}"
CLIP_LAYERS = (  # of a tower of CLIP
    *(
        row
        for name in ("q_proj", "k_proj", "v_proj", "out_proj")
        for row in affine(f"{_CLIP_LAYER}.self_attn.{name}", f"layers.self_attn.{name}")
    ),
    *(row for n in "12" for row in affine(f"{_CLIP_LAYER}.mlp.fc{n}", f"layers.fc{n}")),
    *(row for n in "12" for row in norm(f"{_CLIP_LAYER}.layer_norm{n}", f"layers.layer_norm{n}")),
)

# Files on the hub have the prefix text_model., which the modules of transformers 5 lack; old files have position ids.
TEXT_ENCODER = Table(
    rules=tuple(
        prefixed(
            [
                rule("embeddings.token_embedding.weight", "token_embedding.embedding"),
                rule("embeddings.position_embedding.weight", "position_embedding.embedding"),
                *CLIP_LAYERS,
                *norm("final_layer_norm", "final_layer_norm"),
            ],
            torch=("text_model.", ""),
        )
    ),
    ignored=(r"(text_model\.)?embeddings\.position_ids",),
)


def resnet(torch: str, flax: str) -> list[Rule]:
    """A ResnetBlock2D, with or without time embedding and shortcut."""
    return [
        *norm(f"{torch}.norm1", f"{flax}.norm1"),
        *affine(f"{torch}.conv1", f"{flax}.conv1", CONV),
        *affine(f"{torch}.time_emb_proj", f"{flax}.time_emb_proj"),
        *norm(f"{torch}.norm2", f"{flax}.norm2"),
        *affine(f"{torch}.conv2", f"{flax}.conv2", CONV),
        *affine(f"{torch}.conv_shortcut", f"{flax}.conv_shortcut", POINTWISE),
    ]


def transformer(torch: str, flax: str, projection: Transform) -> list[Rule]:
    """A Transformer2D; `projection` is the transform of proj_in and proj_out, which are convolutions or linear."""
    source, target = f"{torch}.transformer_blocks.{{k}}", f"{flax}.transformer_blocks.{{k}}"
    rows = norm(f"{torch}.norm", f"{flax}.norm")
    rows += affine(f"{torch}.proj_in", f"{flax}.proj_in", projection)
    rows += affine(f"{torch}.proj_out", f"{flax}.proj_out", projection)
    for attention in ("attn1", "attn2"):
        for name in ("to_q", "to_k", "to_v"):
            rows += affine(f"{source}.{attention}.{name}", f"{target}.{attention}.{name}", bias=False)
        rows += affine(f"{source}.{attention}.to_out.0", f"{target}.{attention}.to_out")
    for name in ("norm1", "norm2", "norm3"):
        rows += norm(f"{source}.{name}", f"{target}.{name}")
    rows += affine(f"{source}.ff.net.0.proj", f"{target}.ff.proj")
    rows += affine(f"{source}.ff.net.2", f"{target}.ff.out")
    return rows


def unet_table(config: UNet2DConfig) -> Table:
    """The table of a UNet2DConditionModel, with or without a class embedding."""
    projection = LINEAR if config.use_linear_projection else POINTWISE
    rows = affine("conv_in", "conv_in", CONV)
    for name in ("time_embedding.linear_1", "time_embedding.linear_2", "class_embedding"):
        rows += affine(name, name)
    for block in ("down_blocks.{i}", "mid_block", "up_blocks.{i}"):
        rows += resnet(f"{block}.resnets.{{j}}", f"{block}.resnets.{{j}}")
        rows += transformer(f"{block}.attentions.{{j}}", f"{block}.attentions.{{j}}", projection)
    rows += affine("down_blocks.{i}.downsamplers.0.conv", "down_blocks.{i}.downsampler.conv", CONV)
    rows += affine("up_blocks.{i}.upsamplers.0.conv", "up_blocks.{i}.upsampler.conv", CONV)
    rows += norm("conv_norm_out", "conv_norm_out")
    rows += affine("conv_out", "conv_out", CONV)
    return Table(tuple(rows))


def _vae() -> Table:
    rows = []
    for half, blocks in (("encoder", "down_blocks"), ("decoder", "up_blocks")):
        rows += affine(f"{half}.conv_in", f"{half}.conv_in", CONV)
        for block in (f"{half}.{blocks}.{{i}}", f"{half}.mid_block"):
            rows += resnet(f"{block}.resnets.{{j}}", f"{block}.resnets.{{j}}")
        attention = f"{half}.mid_block.attentions.{{j}}"
        rows += norm(f"{attention}.group_norm", f"{attention}.group_norm")
        # The second spelling is from diffusers < 0.17.
        for name, old in (("to_q", "query"), ("to_k", "key"), ("to_v", "value"), ("to_out.0", "proj_attn")):
            rows += affine((f"{attention}.{name}", f"{attention}.{old}"), f"{attention}.{name.removesuffix('.0')}")
        rows += norm(f"{half}.conv_norm_out", f"{half}.conv_norm_out")
        rows += affine(f"{half}.conv_out", f"{half}.conv_out", CONV)
    rows += affine("encoder.down_blocks.{i}.downsamplers.0.conv", "encoder.down_blocks.{i}.downsampler.conv", CONV)
    rows += affine("decoder.up_blocks.{i}.upsamplers.0.conv", "decoder.up_blocks.{i}.upsampler.conv", CONV)
    rows += affine("quant_conv", "quant_conv", POINTWISE)
    rows += affine("post_quant_conv", "post_quant_conv", POINTWISE)
    return Table(tuple(rows))


VAE = _vae()


def tables(config: StableDiffusionConfig) -> dict[str, Table]:
    """The table of each part."""
    return {"text_encoder": TEXT_ENCODER, "unet": unet_table(config.unet), "vae": VAE}
