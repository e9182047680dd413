"""ImageBind and the diffusion decoders by themselves, on the tiny random folders."""

import numpy as np
import pytest
from PIL import Image

import nextgpt_jax as ng


def test_imagebind_embeds_any_number_of_media(tiny_root):
    imagebind = ng.ImageBind.from_pretrained(tiny_root / "hub" / "imagebind")
    paths = sorted((tiny_root / "data" / "images").glob("*.png"))[:3]
    found = imagebind.embed(images=paths, audios=[(np.sin(np.arange(8000) / 9).astype(np.float32), 8000)])
    assert {name: x.shape for name, x in found.items()} == {"images": (3, 24), "audios": (1, 24)}
    np.testing.assert_allclose(np.linalg.norm(found["images"], axis=-1), 1, atol=1e-5)
    alone = imagebind.embed(images=[Image.open(paths[1])])["images"]
    np.testing.assert_allclose(alone[0], found["images"][1], atol=1e-5)
    assert imagebind.embed() == {}
    with pytest.raises(ng.UserError, match="does not read depth"):
        imagebind.embed(depths=[np.ones((8, 8))])
    with pytest.raises(ng.UserError, match="does not read text"):
        imagebind.embed(texts=["a dog"])


def test_stable_diffusion_draws_prompts(tiny_root):
    pipeline = ng.StableDiffusion.from_pretrained(tiny_root / "hub" / "stable-diffusion")
    options = {"num_inference_steps": 2, "height": 16, "width": 16}
    one, two, other = pipeline(["zero", "zero", "one"], **options).images
    assert one.size == (16, 16)
    assert np.any(np.asarray(one) != np.asarray(two)), "every image has noise of its own"
    np.testing.assert_array_equal(pipeline("zero", seed=1, **options).images[0], two)
    assert len(pipeline("zero", num_images_per_prompt=2, **options).images) == 2
    steps = []
    pipeline("zero", on_step=lambda done, count: steps.append((done, count)), **options)
    assert steps == [(1, 2), (2, 2)]
    for wrong, message in (
        ({"height": 15}, "15"),
        ({"sampler": "lcm"}, "'lcm' is not one of"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
    ):
        with pytest.raises(ng.UserError, match=message):
            pipeline("zero", **(options | wrong))


def test_images_of_a_stochastic_sampler_depend_on_their_seeds_alone(tiny_root):
    pipeline = ng.StableDiffusion.from_pretrained(tiny_root / "hub" / "stable-diffusion")
    options = {"num_inference_steps": 2, "height": 16, "width": 16, "sampler": "euler_a"}
    one, two = pipeline(["zero", "zero"], **options).images
    np.testing.assert_array_equal(pipeline(["one", "zero"], **options).images[1], two)
    assert np.any(np.asarray(one) != np.asarray(two))


def test_video_and_audio_have_their_rates(tiny_root):
    video = ng.TextToVideo.from_pretrained(tiny_root / "hub" / "text-to-video")
    frames, fps = video("zero", num_inference_steps=2, num_frames=3, height=16, width=16, fps=5.0).videos[0]
    assert frames.shape == (3, 16, 16, 3) and frames.dtype == np.uint8 and fps == 5.0
    audio = ng.AudioLDM.from_pretrained(tiny_root / "hub" / "audioldm")
    samples, rate = audio("zero", num_inference_steps=2, seconds=0.1).audios[0]
    assert samples.shape == (800,) and rate == 8000 and np.isfinite(samples).all()


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(ng.UserError, match="no such folder"):
        ng.StableDiffusion.from_pretrained(tmp_path / "nowhere")
