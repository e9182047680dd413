"""The shipped parts, converted and exported: diffusers and transformers load them and draw, move and play the same."""

import pathlib

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers
from flax import nnx
from transformers import AutoTokenizer

pytest.importorskip("sklearn")
from convert.__main__ import main  # noqa: E402
from examples.keypad import judge, things, world  # noqa: E402
from examples.keypad.pretrain.common import caption_ids  # noqa: E402
from nextgpt_jax.models import registry  # noqa: E402
from nextgpt_jax.models.rngs import make_rngs
from nextgpt_jax.weights import orbax_params  # noqa: E402
from nextgpt_jax.weights.components import COMPONENTS  # noqa: E402
from tests.parity import compiled, relative_error  # noqa: E402

KEYPAD = pathlib.Path(things.__file__).parent / "weights" / "base"


@pytest.fixture(scope="module")
def there_and_back(tmp_path_factory):
    """Converts a part and exports it again; gives both folders."""

    def run(component: str, name: str):
        root = tmp_path_factory.mktemp(component)
        main(["convert", component, f"--source={KEYPAD / name}", f"--output={root / 'jax'}"])
        main(["convert", "export", component, f"--source={root / 'jax'}", f"--output={root / 'torch'}"])
        return root / "jax", root / "torch"

    return run


def restored(component: str, folder) -> nnx.Module:
    """Our decoder from the converted folder."""
    config = registry.read_decoder(folder)
    model = nnx.eval_shape(lambda: registry.build(config, rngs=make_rngs(0)))
    for part in COMPONENTS[component](folder):
        graphdef, _ = nnx.split(getattr(model, part.folder))
        setattr(model, part.folder, nnx.merge(graphdef, orbax_params.restore(folder / part.folder, part.state)))
    return model


def test_diffusers_draws_the_same_digits(there_and_back):
    ours, theirs = there_and_back("stable_diffusion", "stable-diffusion")
    pipeline = diffusers.StableDiffusionPipeline.from_pretrained(theirs, safety_checker=None, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    model = restored("stable_diffusion", ours)
    digits = (7, 3)
    captions = [things.caption(things.Thing("image", digit)) for digit in digits]
    tokenizer = AutoTokenizer.from_pretrained(theirs / "tokenizer")
    encode = compiled(model, "encode_prompt")
    prompt, negative = encode(caption_ids(tokenizer, captions)), encode(caption_ids(tokenizer, [""] * 2))
    noise = jax.random.normal(jax.random.key(3), (2, *model.config.latent_shape(world.SIZE, world.SIZE)))
    images = compiled(model, "generate")(
        prompt, negative, noise, model.config.scheduler.sampler_table(8), jnp.full(2, 4.0)
    )
    with torch.no_grad():
        expected = pipeline.text_encoder(torch.from_numpy(caption_ids(tokenizer, captions)).long()).last_hidden_state
    assert relative_error(prompt, expected) < 1e-4
    drawn = pipeline(
        prompt_embeds=torch.from_numpy(np.array(prompt)),
        negative_prompt_embeds=torch.from_numpy(np.array(negative)),
        latents=torch.from_numpy(np.array(noise).transpose(0, 3, 1, 2).copy()),
        height=world.SIZE,
        width=world.SIZE,
        num_inference_steps=8,
        guidance_scale=4.0,
        output_type="np",
    ).images
    assert relative_error(images, drawn) < 1e-3
    for picture in (np.asarray(images), drawn):
        assert judge.classify(np.round(picture * 255).astype(np.uint8)).tolist() == list(digits)


def test_the_other_parts_load_without_a_key_too_many_or_too_few(there_and_back):
    _, folder = there_and_back("text_to_video", "text-to-video")
    assert diffusers.TextToVideoSDPipeline.from_pretrained(folder).unet.config.sample_size == world.SIZE // 4
    for part, kind in {"unet": diffusers.UNet3DConditionModel, "vae": diffusers.AutoencoderKL}.items():
        _, info = kind.from_pretrained(folder / part, output_loading_info=True)
        assert not info["missing_keys"] and not info["unexpected_keys"]
    _, folder = there_and_back("audioldm", "audioldm")
    diffusers.AudioLDMPipeline.from_pretrained(folder)
    _, info = transformers.SpeechT5HifiGan.from_pretrained(folder / "vocoder", output_loading_info=True)
    assert set(info["missing_keys"]) <= {"mean", "scale"} and not info["unexpected_keys"]
    _, folder = there_and_back("llama", "llm")
    _, info = transformers.LlamaForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
