"""FID and IS of files against torch, torchmetrics and the functions of clean-fid and pytorch-fid."""

import dataclasses

import numpy as np
import pytest
import scipy.linalg
import torch
from PIL import Image

from nextgpt_jax import media
from nextgpt_jax.errors import UserError
from nextgpt_jax.evaluation.features.frames import evenly
from nextgpt_jax.evaluation.features.inception import RESIZES
from nextgpt_jax.evaluation.metrics.fid import FID, EmbeddingDistance, InceptionScore
from nextgpt_jax.evaluation.metrics.gaussians import Gaussian
from nextgpt_jax.evaluation.metrics.inception_score import inception_score
from nextgpt_jax.evaluation.types import Outcome, Sample
from tests.feature_networks import write_inception

SIZES = ((40, 52), (300, 310), (64, 30), (31, 299))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder with Inception's weights, pictures and videos; the network."""
    folder, rng = tmp_path_factory.mktemp("fid"), np.random.default_rng(0)
    for kind in ("made", "real"):
        (folder / kind).mkdir()
        for i, size in enumerate(SIZES):
            smooth = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize(size[::-1])
            smooth.save(folder / kind / f"{i}.{'png' if i % 2 else 'jpg'}")
    for name in ("a", "b"):
        media.write("video", folder / f"{name}.mp4", media.Video(rng.integers(0, 256, (5, 32, 48, 3), np.uint8), 4.0))
    return folder, write_inception(folder / "inception.pth")


def outcomes(folder):
    samples = [Sample(str(i), "", references={"image": file}) for i, file in enumerate(_pictures(folder / "real"))]
    made = _pictures(folder / "made")
    return [Outcome(sample, media={"image": [file]}) for sample, file in zip(samples, made)]


def _pictures(folder):
    return sorted(folder.iterdir())


def expected_features(network, paths, resize):
    """By torch, as pytorch-fid and clean-fid do it."""
    found = []
    for path in paths:
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).movedim(-1, 0).float()
        if resize == "pytorch-fid":
            x = 2 * torch.nn.functional.interpolate(image[None] / 255, (299, 299), mode="bilinear") - 1
        else:
            planes = [Image.fromarray(plane.numpy()).resize((299, 299), Image.Resampling.BICUBIC) for plane in image]
            x = (torch.from_numpy(np.stack([np.asarray(p).clip(0, 255) for p in planes]))[None] - 128) / 128
        with torch.no_grad():
            found.append(network(x)[0].numpy())
    return np.stack(found)


@pytest.mark.parametrize("resize", RESIZES)
def test_fid(files, resize):
    folder, network = files
    some = outcomes(folder)
    metric = FID(folder / "inception.pth", [outcome.sample for outcome in some], resize=resize, batch=4)
    numbers = np.concatenate([metric.measure(some[:3]), metric.measure(some[3:])])
    made, real = (expected_features(network, _pictures(folder / name), resize) for name in ("made", "real"))
    np.testing.assert_allclose(numbers, made, rtol=1e-4, atol=1e-4 * np.abs(made).max())
    root = scipy.linalg.sqrtm(np.cov(made, rowvar=False) @ np.cov(real, rowvar=False)).real
    traces = np.trace(np.cov(made, rowvar=False) + np.cov(real, rowvar=False) - 2 * root)
    expected = ((made.mean(0) - real.mean(0)) ** 2).sum() + traces
    figures = metric.aggregate(numbers)
    assert list(figures) == ["FID"] and figures["FID"] == pytest.approx(expected, rel=1e-4)
    assert metric.scores(numbers) is None and f"{resize}'s resize" in metric.protocol


def test_references(files, tmp_path):
    """The samples' own, their folder and its statistics are the same."""
    folder, network = files
    some = outcomes(folder)
    Gaussian.of([expected_features(network, _pictures(folder / "real"), "pytorch-fid")]).save(tmp_path / "real.npz")
    samples = [outcome.sample for outcome in some]
    metrics = [FID(folder / "inception.pth", samples * 2, batch=4)]  # each file once
    metrics += [
        FID(folder / "inception.pth", [], references=path, batch=4) for path in (folder / "real", tmp_path / "real.npz")
    ]
    numbers = metrics[0].measure(some)
    own, of_folder, of_file = (metric.aggregate(numbers)["FID"] for metric in metrics)
    assert own == of_folder == pytest.approx(of_file, rel=1e-4)

    np.savez(tmp_path / "narrow.npz", mu=np.zeros(3), sigma=np.zeros((3, 3)))
    for given, message in (
        ({"references": tmp_path / "none"}, "neither a folder nor a file of statistics"),
        ({"references": tmp_path}, r"holds no image \(.bmp, .jpg"),
        ({"references": tmp_path / "narrow.npz"}, "has statistics of 3 features, and fid 128"),
        ({"samples": [Sample("7", "")]}, "sample 7 has no reference 'image'"),
    ):
        with pytest.raises(UserError, match=message):
            FID(folder / "inception.pth", **{"samples": samples} | given)


def test_answers_without_an_image(files):
    folder, _ = files
    some = outcomes(folder)
    metric = FID(folder / "inception.pth", [outcome.sample for outcome in some], batch=4)
    lacks = [dataclasses.replace(some[0], media={}), *some[1:]]
    numbers = metric.measure(lacks)
    assert np.isnan(numbers[0]).all() and metric.measure(lacks[:1]).shape == (1, 128)
    assert metric.aggregate(numbers) == {"FID": metric.aggregate(numbers[1:])["FID"], "missing": 1.0}


def test_frames_of_videos(files):
    folder, network = files
    samples = [Sample(name, "", references={"video": folder / f"{name}.mp4"}) for name in "ab"]
    metric = FID(folder / "inception.pth", samples, modality="video", frames=3, batch=4)
    numbers = metric.measure([Outcome(sample, media={"video": [folder / "b.mp4"]}) for sample in samples])
    assert numbers.shape == (2, 3 * 128) and np.array_equal(numbers[0], numbers[1])
    frames = media.read_video(folder / "b.mp4").frames
    np.testing.assert_array_equal(evenly(folder / "b.mp4", 3), frames[[0, 2, 4]])
    x = torch.from_numpy(frames[2]).movedim(-1, 0).float()[None] / 255
    with torch.no_grad():
        expected = network(2 * torch.nn.functional.interpolate(x, (299, 299), mode="bilinear") - 1)[0].numpy()
    np.testing.assert_allclose(numbers[0].reshape(3, 128)[1], expected, rtol=1e-4, atol=1e-4 * expected.max())
    assert metric.aggregate(numbers)["FID"] > 0


def test_inception_score(files):
    folder, network = files
    metric = InceptionScore(folder / "inception.pth", splits=1, batch=4)
    numbers = metric.measure(outcomes(folder))
    logits = torch.from_numpy(numbers) @ network.fc.weight.T.detach()
    torchmetrics = pytest.importorskip("torchmetrics.image.inception")
    theirs = torchmetrics.InceptionScore(feature=torch.nn.Identity(), splits=1)
    theirs.features.append(logits.double())
    assert metric.aggregate(numbers)["IS"] == pytest.approx(float(theirs.compute()[0]), rel=1e-4)


def test_inception_score_over_splits():
    """The formula of audioldm_eval and torch-fidelity."""
    logits = torch.from_numpy(2 * np.random.default_rng(0).standard_normal((103, 7)))
    shuffled = logits[np.random.RandomState(2020).permutation(103)]
    p, log_p, scores = shuffled.softmax(1), shuffled.log_softmax(1), []
    for i in range(10):
        part = slice(i * 103 // 10, (i + 1) * 103 // 10)
        scores.append((p[part] * (log_p[part] - p[part].mean(0).log())).sum(1).mean().exp().item())
    found = inception_score(lambda rows: logits.numpy()[rows], 103)
    assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-9)
    with pytest.raises(UserError, match="needs samples"):
        inception_score(lambda rows: logits.numpy()[rows], 0)


def test_embeddings_of_the_systems_encoder(files, tiny_root):
    folder, _ = files
    some = outcomes(folder)
    samples = [outcome.sample for outcome in some]
    metric = EmbeddingDistance(tiny_root / "hub" / "imagebind", samples)
    numbers = metric.measure(some)
    assert numbers.shape == (len(some), 24) and metric.name == "frechet_image"
    assert metric.aggregate(numbers)["Fréchet distance"] > 0
    same = metric.measure([Outcome(sample, media={"image": [sample.references["image"]]}) for sample in samples])
    assert metric.aggregate(same)["Fréchet distance"] == pytest.approx(0, abs=1e-6)
