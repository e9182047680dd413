"""Digits, tones and movies as people bring them: what the variations are, and that the shipped encoder reads them."""

import numpy as np
import pytest
from flax import nnx
from transformers import AutoTokenizer

pytest.importorskip("sklearn")
from examples.keypad import judge, language, variations, world  # noqa: E402
from examples.keypad.exhibits import Exhibits  # noqa: E402
from examples.keypad.pretrain.__main__ import FOLDER  # noqa: E402
from examples.keypad.pretrain.common import all_captions, load  # noqa: E402
from examples.keypad.pretrain.imagebind import CONFIG, KINDS, NUMBER  # noqa: E402
from examples.keypad.pretrain.variations import embedded  # noqa: E402
from nextgpt_jax import media  # noqa: E402
from nextgpt_jax.models.encoders.imagebind import ImageBind  # noqa: E402
from nextgpt_jax.weights.tables import imagebind as imagebind_table  # noqa: E402


def rng():
    return np.random.default_rng(3)


@pytest.fixture(scope="module")
def encoder():
    table = imagebind_table.table(CONFIG.modalities)
    return load(lambda: ImageBind(CONFIG, rngs=nnx.Rngs(0)), FOLDER / "imagebind", table)


@pytest.mark.parametrize("modality", KINDS)
def test_the_encoder_reads_held_out_media_in_each_variation(modality, encoder, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER / "imagebind")
    captions = np.concatenate([all_captions(tokenizer, name)[:, 0] for name in KINDS])
    text, branch = embedded(encoder, "text", captions), "audio" if modality == "audio" else "vision"
    shows, right = Exhibits(tmp_path), []
    for variation in variations.VARIATIONS[modality]:
        things = [request.seen[0] for request in language.held_out_requests(modality, "text")[::2]]
        shown = np.stack([media.load(modality, shows.show(thing, variation), CONFIG) for thing in things])
        views = shown if modality == "image" else shown[:, 0]  # one of each
        found = (embedded(encoder, branch, views) @ text.T).argmax(-1)
        right.append(np.mean([NUMBER[thing] == number for thing, number in zip(things, found, strict=True)]))
        assert right[-1] >= 0.65, variation
    assert np.mean(right) >= 0.85


def test_pictures_show_the_same_digit_in_other_ways():
    ink = world.ink()[0]
    shapes = {name: vary(ink, rng()).shape for name, vary in variations.PICTURES.items()}
    assert shapes["256 px"] == (256, 256, 3) and shapes["small in 400 x 300"] == (300, 400, 3)
    chalk = variations.white_on_black(ink, rng()).astype(int).mean(-1)
    assert chalk[ink == 0].max() < 40 and chalk[ink == 1].min() > 215
    amounts = [variations.pen(ink, width).mean() for width in (1.0, 2.0, 4.0, 6.0)]
    assert amounts == sorted(amounts) and amounts[0] < 0.06 < 0.2 < amounts[-1]
    assert not variations.pen(np.zeros((32, 32), np.float32), 3.0).any()


def test_skeletons_are_lines_in_the_middle_of_strokes():
    drawing = np.zeros((40, 40), bool)
    drawing[10:15, 5:35] = drawing[5:35, 18:23] = True
    lines = variations.skeleton(drawing)
    assert lines[12, 8:32].all() and lines[8:32, 20].all() and lines.sum() < 70
    assert not (lines & ~drawing).any()


@pytest.mark.parametrize("codec", ["libx264", "mpeg4", "libvpx", "mjpeg"])
def test_frames_come_back_from_codecs(codec):
    video = media.Video(world.movie(world.ink()[0], "left", rng()), world.FPS)
    good, bad = (variations.recoded(video, codec, loss).frames for loss in (0.0, 1.0))
    assert good.shape == bad.shape == video.frames.shape
    errors = [np.abs(frames.astype(int) - video.frames).mean() for frames in (good, bad)]
    assert errors[0] <= errors[1] < 30 and errors[0] < 8
    assert errors[0] < errors[1] or codec in ("mpeg4", "mjpeg")


def test_recordings_are_still_heard_by_an_exchange():
    random = rng()
    for name, vary in variations.RECORDINGS.items():
        tones = [vary(key, random) for key in range(10)]
        heard = [judge.key(media.resample(t.samples, t.sample_rate, world.RATE), world.RATE) for t in tones]
        assert sum(h == key for key, h in enumerate(heard)) >= 9, name
        assert all(np.abs(t.samples).max() <= 1.0 for t in tones)
    assert np.abs(variations.quiet(1, random).samples).max() < 0.15


def test_mixtures_are_read_by_the_media_library():
    random, ink = rng(), world.ink()[0]
    for _ in range(10):
        assert media.preprocess("image", variations.any_picture(ink, random), CONFIG).shape == (32, 32, 3)
    video = variations.any_film(world.moving(ink[None], ["up"], random, frames=2)[0], random)
    assert len(video.frames) == 2
    assert len(variations.any_recording(4, random).samples) > 0
