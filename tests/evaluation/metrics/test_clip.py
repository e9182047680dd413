"""CLIP score, CLIPSIM and CLIP-I against torchmetrics and transformers' CLIPModel."""

import numpy as np
import pytest
import torch

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.metrics.clip import CLIPSIM, CLIPScore, FrameConsistency
from nextgpt_jax.evaluation.types import Outcome, Sample
from nextgpt_jax.weights.tokenizers import load_tokenizer
from tests.feature_networks import write_clip

CAPTIONS = ("a handwritten seven", "the word zero, which is far too long for the context of the text tower", "three")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """CLIP's folder, in which pictures and videos are, too; the model."""
    folder, rng = tmp_path_factory.mktemp("clip"), np.random.default_rng(0)
    model = write_clip(folder)
    for i in range(3):
        media.write("image", folder / f"{i}.png", rng.integers(0, 256, (40 + i, 36, 3), np.uint8))
        frames = rng.integers(0, 256, (4, 32, 48, 3), np.uint8)
        media.write("video", folder / f"{i}.mp4", media.Video(frames, 4.0))
    return folder, model


def outcomes(folder, modality, suffix):
    return [
        Outcome(Sample(str(i), "", references={"caption": text}), media={modality: [folder / f"{i}{suffix}"]})
        for i, text in enumerate(CAPTIONS)
    ]


class Features(torch.nn.Module):
    """What torchmetrics expects of CLIPModel: transformers 5 returns the features with others."""

    def __init__(self, model):
        super().__init__()
        self.model, self.config = model, model.config

    def get_image_features(self, pixels):
        return self.model.get_image_features(pixels).pooler_output

    def get_text_features(self, ids, mask):
        return self.model.get_text_features(ids, attention_mask=mask).pooler_output


def features(folder, model):
    """Unit vectors of frames [n, f, e] and texts [n, e] by transformers."""
    tokenizer, shim = load_tokenizer(folder), Features(model)
    tokens = tokenizer(list(CAPTIONS), return_tensors="pt", padding=True, truncation=True, max_length=12)
    frames = [media.read_video(folder / f"{i}.mp4").frames for i in range(3)]
    pixels = np.stack([media.preprocess_image(frame, 32) for video in frames for frame in video])
    with torch.no_grad():
        seen = shim.get_image_features(torch.from_numpy(pixels).movedim(-1, 1))
        read = shim.get_text_features(tokens["input_ids"], tokens["attention_mask"])
    seen, read = (x / x.norm(dim=-1, keepdim=True) for x in (seen, read))
    return seen.reshape(3, 4, -1).numpy(), read.numpy()


def test_clip_score(files):
    torchmetrics = pytest.importorskip("torchmetrics.multimodal.clip_score")
    folder, model = files
    tokenizer = load_tokenizer(folder)

    def processor(text=None, images=None, **_):
        if images is None:
            return tokenizer(text, return_tensors="pt", padding=True, truncation=True, max_length=12)
        pixels = [media.preprocess_image(image.movedim(0, -1).numpy(), 32) for image in images]
        return {"pixel_values": torch.from_numpy(np.stack(pixels)).movedim(-1, 1)}

    theirs = torchmetrics.CLIPScore(model_name_or_path=lambda: (Features(model), processor))
    images = [torch.from_numpy(media.read_image(folder / f"{i}.png")).movedim(-1, 0) for i in range(3)]
    expected = float(theirs(images, list(CAPTIONS)))
    metric = CLIPScore(folder)
    some = outcomes(folder, "image", ".png")
    numbers = metric.measure(some)
    assert numbers.shape == (3, 1) and np.array_equal(metric.scores(numbers), numbers[:, 0])
    assert metric.aggregate(numbers) == {"CLIP": pytest.approx(expected, rel=1e-4)}
    assert metric.aggregate(-np.abs(numbers)) == {"CLIP": 0.0}
    assert metric.protocol == "100 x cosine of image and caption, CLIP ViT-1 layers/8"

    lacks = metric.measure([Outcome(some[0].sample), *some[1:]])
    assert metric.aggregate(lacks) == metric.aggregate(numbers[1:]) | {"missing": 1.0}
    with pytest.raises(UserError, match="no answer has a medium"):
        metric.aggregate(lacks[:1])
    with pytest.raises(UserError, match="sample x has no reference 'caption'"):
        metric.measure([Outcome(Sample("x", ""), media=some[0].media)])


def test_videos(files):
    folder, model = files
    some = outcomes(folder, "video", ".mp4")
    frames, texts = features(folder, model)
    metric = CLIPSIM(folder, frames=4)
    numbers = metric.measure(some)
    np.testing.assert_allclose(numbers[:, 0], (frames @ texts[:, :, None]).mean((1, 2)), rtol=1e-4)
    assert metric.aggregate(numbers) == {"CLIPSIM": pytest.approx(numbers.mean(), rel=1e-6)}
    assert list(CLIPSIM(folder, figure="CLIP-T").aggregate(numbers)) == ["CLIP-T"]

    consistency = FrameConsistency(folder, frames=4)
    numbers = consistency.measure(some)
    pairs = np.einsum("nfe,nfe->nf", frames[:, 1:], frames[:, :-1])
    np.testing.assert_allclose(numbers[:, 0], pairs.mean(1), rtol=1e-4)
    assert list(consistency.aggregate(numbers)) == ["CLIP-I"]
