"""What a checkpoint of another size is told: which sizes it has."""

import pytest
from flax import nnx

from nextgpt_jax.models.encoders.imagebind import ImageBind, ImageBindConfig
from nextgpt_jax.models.llms.llama import Llama, LlamaConfig
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import matching, tables
from nextgpt_jax.weights.matching import ConversionError
from nextgpt_jax.weights.tables import imagebind as imagebind_table
from nextgpt_jax.weights.torch_checkpoint import Checkpoint, Tensor, open_checkpoint
from tests import FIXTURES, tiny


def imagebind(**changes):
    config = ImageBindConfig.from_dict(tiny.IMAGEBIND | changes)
    return nnx.state(nnx.eval_shape(lambda: ImageBind(config, rngs=make_rngs(0)))), tables.encoder(config), config


def checkpoint(state, table) -> Checkpoint:
    shapes = matching.torch_shapes(state, table)
    return Checkpoint("w.pth", {key: Tensor(shape, "float32", lambda: None) for key, shape in shapes.items()})


@pytest.mark.parametrize("modalities", [["vision", "audio"], ["vision", "text", "imu", "depth"]])
def test_an_imagebind_shows_its_sizes(modalities):
    sizes = {f"{name}_{size}": n for name in modalities for size, n in {"embed_dim": 16, "num_blocks": 3}.items()}
    heads = {f"{name}_num_heads": 2 for name in modalities}
    state, table, config = imagebind(modalities=modalities, **sizes, **heads, imu_kernel_size=8)
    found = imagebind_table.sizes(checkpoint(state, table).shapes)
    assert found == sizes | {"out_embed_dim": config.out_embed_dim}


def test_an_imagebind_of_another_size():
    state, table, _ = imagebind(vision_embed_dim=32, vision_num_blocks=2)
    with pytest.raises(ConversionError) as caught:
        matching.match(checkpoint(state, table), *imagebind()[:2])
    expected = (
        "w.pth does not fit the model: it has vision_embed_dim 32, vision_num_blocks 2, and the config "
        "vision_embed_dim 16, vision_num_blocks 1: give the config.json that belongs to these weights ("
    )
    assert str(caught.value).startswith(expected) and len(str(caught.value)) < 400


def test_a_language_model_of_another_size():
    config = LlamaConfig(vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    state = nnx.state(nnx.eval_shape(lambda: Llama(config, rngs=make_rngs(0))))
    with pytest.raises(ConversionError) as caught:
        matching.match(open_checkpoint(FIXTURES / "vicuna"), state, tables.language_model(config).whole(config))
    assert (
        "it has vocab_size 320, hidden_size 48, intermediate_size 96, num_hidden_layers 3, and the config "
        "vocab_size 9, hidden_size 8, intermediate_size 8, num_hidden_layers 1: give the config.json"
    ) in str(caught.value)
