"""AudioLDM's text encoder, UNet and vocoder in the hub's layout. Its autoencoder is Stable Diffusion's."""

import numpy as np

from nextgpt_jax.models.diffusion.audioldm import AudioLDMConfig
from nextgpt_jax.weights.rules import CONV, TRANSPOSED_CONV, Rule, Table, affine, norm, prefixed, rule
from nextgpt_jax.weights.tables.stable_diffusion import VAE, unet_table
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor


def _text_encoder() -> list[Rule]:
    rows = [
        rule(f"embeddings.{name}_embeddings.weight", f"{name}_embeddings.embedding")
        for name in ("word", "position", "token_type")
    ]
    rows += norm("embeddings.LayerNorm", "embeddings_norm")
    layer = "encoder.layer.{i}"
    for name in ("query", "key", "value"):
        rows += affine(f"{layer}.attention.self.{name}", f"layers.attention.{name}")
    rows += affine(f"{layer}.attention.output.dense", "layers.attention.output")
    rows += norm(f"{layer}.attention.output.LayerNorm", "layers.attention_norm")
    rows += affine(f"{layer}.intermediate.dense", "layers.intermediate")
    rows += affine(f"{layer}.output.dense", "layers.output")
    rows += norm(f"{layer}.output.LayerNorm", "layers.output_norm")
    rows += affine("pooler.dense", "pooler")
    projection = [row for n in "12" for row in affine(f"text_projection.linear{n}", f"text_projection.linear{n}")]
    return prefixed(rows, torch="text_model.") + projection


TEXT_ENCODER = Table(tuple(_text_encoder()), ignored=(r"text_model\.embeddings\.(position|token_type)_ids",))

_MAGNITUDE_AND_DIRECTION = (
    ("weight_g", "weight_v"),
    ("parametrizations.weight.original0", "parametrizations.weight.original1"),
)


def fold_weight_norm(checkpoint: Checkpoint) -> Checkpoint:
    """Replaces each pair of tensors of torch's weight norm (over axis 0) by the weight g v / |v|.

    Pairs that are incomplete, inconsistent, or present next to the weight are kept, and so reported as unexpected.
    """
    tensors = dict(checkpoint.tensors)
    for magnitude, direction in _MAGNITUDE_AND_DIRECTION:
        for g in [key for key in checkpoint if key.endswith(f".{magnitude}")]:
            layer = g.removesuffix(f".{magnitude}")
            both = checkpoint.tensors[g], checkpoint.tensors.get(f"{layer}.{direction}")
            fits = both[1] and both[0].shape == (both[1].shape[0], *(1,) * (len(both[1].shape) - 1))
            if fits and f"{layer}.weight" not in checkpoint:
                del tensors[g], tensors[f"{layer}.{direction}"]
                tensors[f"{layer}.weight"] = _folded(*both)
    return checkpoint.with_tensors(tensors)


def _folded(magnitude: Tensor, direction: Tensor) -> Tensor:
    return Tensor(direction.shape, np.dtype(np.float32), lambda: _weight(magnitude.read(), direction.read()))


def _weight(g: np.ndarray, v: np.ndarray) -> np.ndarray:
    g, v = g.astype(np.float32), v.astype(np.float32)
    return g * v / np.sqrt(np.square(v).sum(tuple(range(1, v.ndim)), keepdims=True))


# `mean` and `scale` normalize the spectrogram, which AudioLDM does not use.
VOCODER = Table(
    rules=(
        *affine("conv_pre", "conv_pre", CONV),
        *affine("upsampler.{i}", "upsampler.{i}", TRANSPOSED_CONV),
        *(
            row
            for name in ("convs1", "convs2")
            for row in affine(f"resblocks.{{i}}.{name}.{{j}}", f"resblocks.{{i}}.{name}.{{j}}", CONV)
        ),
        *affine("conv_post", "conv_post", CONV),
    ),
    ignored=("mean", "scale"),
    preprocess=fold_weight_norm,
)


def tables(config: AudioLDMConfig) -> dict[str, Table]:
    """The table of each part by its folder."""
    return {"text_encoder": TEXT_ENCODER, "unet": unet_table(config.unet), "vae": VAE, "vocoder": VOCODER}
