"""Conversations to examples of one layout."""

import json

import jax
import numpy as np
import pytest

from nextgpt_jax.data.examples import BatchSpec, ExampleBuilder
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.data.survey import survey
from nextgpt_jax.errors import UserError
from nextgpt_jax.media import write_mp4, write_wav
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig
from nextgpt_jax.prompts import Input, Output, Turn
from nextgpt_jax.templates import TextTemplate
from tests.test_prompts import TOKENIZER, VOCAB, VOCABULARY


class CaptionTokenizer:
    """Words by length, cut and padded."""

    def __call__(self, text, padding, truncation, max_length):
        assert padding == "max_length" and truncation
        ids = [len(word) for word in text.split()][:max_length]
        return {"input_ids": ids + [0] * (max_length - len(ids))}


READS = ImageBindConfig.from_dict(
    {
        "modalities": ["vision", "audio"], "vision_embed_dim": 8, "vision_num_blocks": 1, "vision_num_heads": 1,
        "audio_embed_dim": 8, "audio_num_blocks": 1, "audio_num_heads": 1, "audio_kernel_size": 4, "audio_stride": 4,
        "audio_num_mel_bins": 16, "audio_target_len": 20, "audio_clips": 2, "video_clips": 2, "video_crops": 3,
        "out_embed_dim": 8, "kernel_size": [2, 4, 4], "image_size": 8,
    }
)  # fmt: skip


def spec_of(samples, limit=4):
    found = survey(samples, limit)
    return BatchSpec(found.inputs, found.outputs)


def builder(samples=(), **options):
    sizes = dict(
        caption_tokenizers={"image": CaptionTokenizer(), "audio": CaptionTokenizer()},
        caption_lengths={"image": 4, "audio": 6},
        vocabulary=VOCABULARY,
        encoders=dict.fromkeys(("image", "video", "audio"), READS),
        max_length=96,
        spec=spec_of(samples),
        template=TextTemplate(),
    )
    return ExampleBuilder(TOKENIZER, **(sizes | options))


def write(path, records):
    path.write_text(json.dumps(records))
    return str(path)


@pytest.mark.parametrize(
    "turn, message",
    [
        (Turn((Input("depth", "x.png"),), ("x",)), "depth inputs, which this model's encoder does not read"),
        (Turn(("x",), (Output("video", "x"),)), "video outputs, but model.video_decoder is not set"),
    ],
)
def test_modalities_that_are_not_built_are_refused(turn, message):
    with pytest.raises(UserError, match=message):
        builder([(turn,)])


def test_an_example(folder):
    conversation = (
        Turn((Input("image", folder / "0.png"), "?"), ("zero", Output("image", "a big zero"))),
        Turn(("and", Input("image", folder / "2.png")), ("two",)),
    )
    row = builder([conversation])(conversation)
    assert {k: v.dtype.name for k, v in row.items() if isinstance(v, np.ndarray)} == {
        "tokens": "int32",
        "lengths": "int32",
        "loss_mask": "bool",
    }
    n = row["lengths"]
    assert row["tokens"][n - 1] and not row["tokens"][n:].any() and not row["loss_mask"][n:].any()
    media = row["media"]["image"]
    assert media["input"].shape == (2, 8, 8, 3) and media["input"].dtype == np.float32
    assert media["input"][0].mean() < media["input"][1].mean()
    for position in media["positions"]:
        assert row["tokens"][position - 1] == VOCAB and row["tokens"][position + 1] == VOCAB + 1
    signals = row["signals"]["image"]
    assert signals["mask"].tolist() == [True]
    assert tuple(row["tokens"][signals["positions"][0]]) == VOCABULARY.signal_ids("image")
    assert signals["captions"].tolist() == [[1, 3, 4, 0]]
    assert row["media"].keys() == row["signals"].keys() == {"image"}


def test_examples_have_one_layout_whatever_their_mixture(folder):
    """Every modality that some sample has is in every row; what a sample has not is unused."""
    write_wav(folder / "tone.wav", np.sin(np.arange(4000) / 5), 8000)
    write_mp4(
        folder / "clip.mp4", np.zeros((6, 16, 16, 3), np.uint8) + np.arange(6, dtype=np.uint8)[:, None, None, None], 4
    )
    image, audio, video = (
        Input("image", folder / "1.png"), Input("audio", folder / "tone.wav"), Input("video", folder / "clip.mp4")
    )  # fmt: skip
    samples = [
        (Turn((image, image, "?"), ("both", Output("audio", "a tone"), Output("image", "a"))),),
        (Turn((audio, "and", video, "?"), ("x",)), Turn((audio, "again", image), ("y", Output("audio", "b")))),
        (Turn(("talk",), ("talk",)),),
    ]
    assert spec_of(samples, 2) == BatchSpec({"image": 2, "video": 1, "audio": 2}, {"image": 1, "audio": 1})
    media = survey(samples, 2)
    assert [{(kind.__name__, name): int(n) for (kind, name), n in zip(media.kinds, row, strict=True) if n}
            for row in media.media] == [
        {("Input", "image"): 2, ("Output", "image"): 1, ("Output", "audio"): 1},
        {("Input", "image"): 1, ("Input", "video"): 1, ("Input", "audio"): 2, ("Output", "audio"): 1}, {},
    ]  # fmt: skip
    make = builder(samples, max_length=128)
    rows = [make(s) for s in samples]
    shapes = [jax.tree.map(np.shape, row) for row in rows]
    assert shapes[0] == shapes[1] == shapes[2]
    assert {name: entry["input"].shape[1:] for name, entry in rows[1]["media"].items()} == {
        name: READS.input_shape(name) for name in ("image", "video", "audio")
    }
    used = [{n: int((e["positions"] < 128).sum()) for n, e in row["media"].items()} for row in rows]
    assert used == [
        {"image": 2, "video": 0, "audio": 0},
        {"image": 1, "video": 1, "audio": 2},
        {"image": 0, "video": 0, "audio": 0},
    ]
    for row in rows:
        for entry in row["media"].values():
            for position in entry["positions"][entry["positions"] < 128]:
                assert row["tokens"][position - 1] == VOCAB and row["tokens"][position + 1] == VOCAB + 1
    assert [int(r["signals"][n]["mask"].sum()) for r in rows for n in ("image", "audio")] == [1, 1, 0, 1, 0, 0]
    assert tuple(rows[0]["tokens"][rows[0]["signals"]["audio"]["positions"][0]]) == VOCABULARY.signal_ids("audio")


def test_media_are_found_in_the_folder_of_their_modality(folder):
    (folder / "images").mkdir()
    (folder / "1.png").rename(folder / "images" / "1.png")
    records = [{"caption": "a", "image_name": "1.png"}, {"caption": "b", "image_name": "2.png"}]
    samples = read_samples("captioning", write(folder / "c.json", records), "")
    make = builder(samples)
    assert make(samples[0])["media"]["image"]["input"].max() < make(samples[1])["media"]["image"]["input"].max()


def test_long_examples_are_truncated(folder):
    conversation = (Turn(("x" * 30,), ("y" * 30, Output("image", "c"))),)
    row = builder([conversation], max_length=40)(conversation)
    assert row["lengths"] == 40 and not row["signals"]["image"]["mask"].any()


def test_too_many_media_are_refused(folder):
    conversation = (Turn(tuple(Input("image", folder / "0.png") for _ in range(3)), ("x",)),)
    found = survey([(Turn(("x",), ("x",)),), conversation], 2)
    assert found.inputs == {} and not found.media.any()
    (problem,) = found.problems
    assert problem.index == 1 and problem.reason == "has 3 image inputs but data.max_media is 2: raise it"


def test_an_example_with_an_unreadable_medium_stays_empty(folder):
    turns = [Turn((Input("image", folder / name),), ("x",)) for name in ("0.png", "none.png")]
    make = builder(spec=BatchSpec({"image": 2}, {}))
    batch = make.empty(count=2)
    with pytest.raises(UserError, match="none.png"):
        make.fill(jax.tree.map(lambda array: array[1, ...], batch), turns)
    jax.tree.map(np.testing.assert_array_equal, batch, make.empty(count=2))
