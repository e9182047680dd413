"""Dataset files to conversations to batches."""

import json
import time

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from nextgpt_jax.config import DataConfig
from nextgpt_jax.data.examples import BatchSpec, ExampleBuilder, layout
from nextgpt_jax.data.pipeline import BatchSource, batches
from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.errors import UserError
from nextgpt_jax.media import write_mp4, write_wav
from nextgpt_jax.models.encoders.imagebind import ImageBindConfig
from nextgpt_jax.prompts import Input, Output, Template, Turn
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


def encoder(samples=(), **options):
    sizes = dict(
        caption_tokenizers={"image": CaptionTokenizer(), "audio": CaptionTokenizer()},
        caption_lengths={"image": 4, "audio": 6},
        vocabulary=VOCABULARY,
        encoder=READS,
        max_length=96,
        layout=layout(samples, 4),
        template=Template(),
    )
    return ExampleBuilder(TOKENIZER, **(sizes | options))


@pytest.fixture
def folder(tmp_path):
    for i in range(3):
        Image.fromarray(np.full((10, 12, 3), 60 * i, np.uint8)).save(tmp_path / f"{i}.png")
    return tmp_path


def write(path, records):
    path.write_text(json.dumps(records))
    return str(path)


def test_captions_serve_two_stages(folder):
    path = write(folder / "c.json", [{"caption": "a dog", "image_name": "1.png", "id": "1"}])
    image = Input("image", folder / "1.png")
    assert read_samples("describe", path, str(folder)) == [(Turn((image, " generate a caption"), ("a dog",)),)]
    assert read_samples("generate", path, str(folder)) == [(Turn(("a dog",), ("a dog", Output("image", "a dog"))),)]


def test_the_references_instruction_files(folder):
    """One input_image, or captions as a string, as its comprehension and generation files have them."""
    talk = [{"from": "human", "value": "<image>\nWhat is it?"}, {"from": "gpt", "value": "a dog"}]
    draw = [{"from": "human", "value": "draw a dog"}, {"from": "gpt", "value": "Sure thing! <image>"}]
    records = [
        {"input_image": "0.png", "conversations": talk},
        {
            "output_image": "x.jpg",
            "image_captions": "a dog",
            "image_caption_embeddings": "x.npy",
            "conversations": draw,
        },
    ]
    first, second = read_samples("instructions", write(folder / "i.json", records), str(folder))
    assert first == (Turn((Input("image", folder / "0.png"), "\nWhat is it?"), ("a dog",)),)
    assert second == (Turn(("draw a dog",), ("Sure thing!", Output("image", "a dog"))),)


def test_media_go_to_their_turns(folder):
    conversations = [
        {"from": "human", "value": "<image> and <image>?"},
        {"from": "gpt", "value": "two. <image>"},
        {"from": "human", "value": "and <image>?"},
        {"from": "gpt", "value": "<image> three <image>"},
    ]
    record = {
        "conversations": conversations,
        "input_images": ["0.png", "1.png", "2.png"],
        "image_captions": ["a", "b", "c"],
    }
    (sample,) = read_samples("instructions", write(folder / "i.json", [record]), str(folder))
    assert [s.content.name for t in sample for s in t.human if isinstance(s, Input)] == ["0.png", "1.png", "2.png"]
    assert sample[0].assistant == ("two.", Output("image", "a"))
    assert sample[1].assistant == ("three", Output("image", "b"), Output("image", "c"))


TALK = [{"from": "human", "value": "draw"}, {"from": "gpt", "value": "<image>"}]


@pytest.mark.parametrize(
    "kind, records, message",
    [
        ("describe", {"caption": "a"}, "should be a list"),
        ("describe", [], "should be a list"),
        (
            "describe",
            [{"caption": "a", "image_name": "0.png"}, {"caption": "a"}],
            "record 1: needs one of image_name, video_name",
        ),
        ("instructions", [{"conversations": [{"from": "gpt", "value": "hi"}]}], "record 0: turns should alternate"),
        (
            "instructions",
            [{"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]}],
            "record 0: the prompt has 1 <image> mark but 0 images",
        ),
        (
            "instructions",
            [{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "<image>"}]}],
            "record 0: no caption",
        ),
        ("instructions", [{"conversations": []}], "record 0: turns should alternate"),
        ("instructions", [{"conversations": TALK, "image_captions": [5]}], "record 0: image_caption should be texts"),
    ],
)
def test_malformed_files(folder, kind, records, message):
    with pytest.raises(UserError, match=message):
        read_samples(kind, write(folder / "bad.json", records), str(folder))


def test_media_without_marks_are_not_dropped(folder):
    talk = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "x"}]
    path = write(folder / "i.json", [{"conversations": talk, "input_image": "0.png"}])
    with pytest.raises(UserError, match="record 0: more image files or captions than <image> marks"):
        read_samples("instructions", path, str(folder))


@pytest.mark.parametrize(
    "turn, message",
    [
        (Turn((Input("depth", "x.png"),), ("x",)), "depth inputs, which this model's encoder does not read"),
        (Turn(("x",), (Output("video", "x"),)), "video outputs, but model.video_decoder is not set"),
    ],
)
def test_modalities_that_are_not_built_are_refused(turn, message):
    with pytest.raises(UserError, match=message):
        encoder([(turn,)])


def test_a_missing_or_broken_file(folder):
    with pytest.raises(UserError, match="no such file"):
        read_samples("describe", str(folder / "none.json"), "")
    (folder / "broken.json").write_text("[{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_samples("describe", str(folder / "broken.json"), "")


def test_a_row(folder):
    conversation = (
        Turn((Input("image", folder / "0.png"), "?"), ("zero", Output("image", "a big zero"))),
        Turn(("and", Input("image", folder / "2.png")), ("two",)),
    )
    row = encoder([conversation])(conversation)
    assert {k: v.dtype.name for k, v in row.items() if isinstance(v, np.ndarray)} == {
        "tokens": "int32",
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


def test_rows_of_one_layout_whatever_their_mixture(folder):
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
    assert layout(samples, 2) == BatchSpec({"image": 2, "video": 1, "audio": 2}, {"image": 1, "audio": 1})
    make = encoder(samples, max_length=128)
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


def test_media_lie_in_the_folder_of_their_modality_or_where_they_are_named(folder):
    (folder / "images").mkdir()
    (folder / "1.png").rename(folder / "images" / "1.png")
    records = [{"caption": "a", "image_name": "1.png"}, {"caption": "b", "image_name": "2.png"}]
    samples = read_samples("describe", write(folder / "c.json", records), "")
    make = encoder(samples)
    assert make(samples[0])["media"]["image"]["input"].max() < make(samples[1])["media"]["image"]["input"].max()


def test_several_files_are_mixed(folder):
    one = write(folder / "one.json", [{"caption": "a", "image_name": "1.png"}])
    two = write(folder / "two.json", [{"caption": "b", "audio_name": "x.wav"}])
    first, second = read_samples("generate", f"{one},{two}", "")
    assert first[0].assistant[1] == Output("image", "a") and second[0].assistant[1] == Output("audio", "b")


def test_what_is_too_long_is_cut(folder):
    conversation = (Turn(("x" * 30,), ("y" * 30, Output("image", "c"))),)
    row = encoder([conversation], max_length=40)(conversation)
    assert row["lengths"] == 40 and not row["signals"]["image"]["mask"].any()


def test_too_many_media_are_refused(folder):
    conversation = (Turn(tuple(Input("image", folder / "0.png") for _ in range(3)), ("x",)),)
    with pytest.raises(UserError, match="sample 1 has 3 image inputs but data.max_media is 2"):
        layout([(Turn(("x",), ("x",)),), conversation], 2)


def test_the_pipeline_shuffles_every_epoch_and_resumes(folder):
    samples = [(Turn((str(i),), (str(i),)),) for i in range(10)]
    config = DataConfig(batch_size=5)
    data = batches(samples, encoder(), config, seed=0)
    found = []
    for _ in range(6):
        found.append(next(data)["tokens"])
    epochs = [np.concatenate(found[i : i + 2]) for i in (0, 2, 4)]
    for epoch in epochs:
        assert len({row.tobytes() for row in epoch}) == 10
    assert not np.array_equal(epochs[0], epochs[1])
    again = batches(samples, encoder(), config, seed=0, first=3)
    some = batches(samples, encoder(), config, seed=0, first=3, rows=[1, 4])
    for expected in found[3:]:
        np.testing.assert_array_equal(next(again)["tokens"], expected)
        np.testing.assert_array_equal(next(some)["tokens"], expected[[1, 4]])


def test_no_more_batches_are_read_ahead_than_there_are_threads():
    made, samples = [], [(Turn((str(i),), (str(i),)),) for i in range(50)]

    class Counted:
        max_length = 96

        def __call__(self, sample):
            made.append(sample)
            return encoder()(sample)

    data = batches(samples, Counted(), DataConfig(batch_size=1, num_workers=2), seed=0)
    next(data)
    time.sleep(0.5)
    assert len(made) <= 3


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30), size=st.integers(1, 5))
def test_epochs_have_every_sample_in_batches_of_like_length(lengths, size):
    """And a batch is as long as its bucket, which is long enough."""
    samples = [(Turn(("h" * n,), (str(i),)),) for i, n in enumerate(lengths)]
    make = encoder(samples, max_length=128)
    source = BatchSource(samples, make, DataConfig(batch_size=size, bucket_boundaries=(48, 60)), seed=1)
    count = -(-len(samples) // size)
    full = {make(s)["tokens"][: make.length(s)].tobytes() for s in samples}
    for epoch in range(2):
        seen = []
        for k in range(count):
            batch = source[epoch * count + k]
            assert batch["tokens"].shape == batch["loss_mask"].shape and len(batch["tokens"]) == size
            assert batch["tokens"].shape[1] in (48, 60, 128) and batch["lengths"].max() <= batch["tokens"].shape[1]
            seen += [row[:n].tobytes() for row, n in zip(batch["tokens"], batch["lengths"], strict=True)]
        assert len(seen) == count * size and set(seen) == full
