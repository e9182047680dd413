"""The text-to-video UNet in the hub's layout. Its text encoder and autoencoder are Stable Diffusion's."""

from nextgpt_jax.models.diffusion.text_to_video import TextToVideoConfig
from nextgpt_jax.weights.rules import CONV, LINEAR, Rule, Table, affine, norm
from nextgpt_jax.weights.tables.stable_diffusion import TEXT_ENCODER, VAE, resnet, transformer


def _temporal_convolutions(torch: str, flax: str) -> list[Rule]:
    """A TemporalConvLayer, whose sequences are norm, SiLU, (dropout from the second on,) convolution."""
    rows = []
    for i in range(4):
        rows += norm(f"{torch}.conv{i + 1}.0", f"{flax}.norms.{i}")
        rows += affine(f"{torch}.conv{i + 1}.{3 if i else 2}", f"{flax}.convs.{i}", CONV)
    return rows


def _unet() -> Table:
    rows = affine("conv_in", "conv_in", CONV)
    for name in ("linear_1", "linear_2"):
        rows += affine(f"time_embedding.{name}", f"time_embedding.{name}")
    rows += transformer("transformer_in", "transformer_in", LINEAR)
    for block in ("down_blocks.{i}", "mid_block", "up_blocks.{i}"):
        rows += resnet(f"{block}.resnets.{{j}}", f"{block}.resnets.{{j}}")
        rows += _temporal_convolutions(f"{block}.temp_convs.{{j}}", f"{block}.temp_convs.{{j}}")
        for name in ("attentions", "temp_attentions"):
            rows += transformer(f"{block}.{name}.{{j}}", f"{block}.{name}.{{j}}", LINEAR)
    rows += affine("down_blocks.{i}.downsamplers.0.conv", "down_blocks.{i}.downsampler.conv", CONV)
    rows += affine("up_blocks.{i}.upsamplers.0.conv", "up_blocks.{i}.upsampler.conv", CONV)
    rows += norm("conv_norm_out", "conv_norm_out")
    rows += affine("conv_out", "conv_out", CONV)
    return Table(tuple(rows))


UNET = _unet()


def tables(config: TextToVideoConfig) -> dict[str, Table]:
    """The table of each part."""
    return {"text_encoder": TEXT_ENCODER, "unet": UNET, "vae": VAE}
