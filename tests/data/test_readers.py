"""Dataset files to conversations."""

import pytest

from nextgpt_jax.data.readers import read_samples
from nextgpt_jax.errors import UserError
from nextgpt_jax.prompts import Input, Output, Turn
from tests.data.test_examples import write

TALK = [{"from": "human", "value": "draw"}, {"from": "gpt", "value": "<image>"}]


def test_captions_serve_two_stages(folder):
    path = write(folder / "c.json", [{"caption": "a dog", "image_name": "1.png", "id": "1"}])
    image = Input("image", folder / "1.png")
    assert read_samples("captioning", path, str(folder)) == [(Turn((image, " generate a caption"), ("a dog",)),)]
    assert read_samples("generation", path, str(folder)) == [(Turn(("a dog",), ("a dog", Output("image", "a dog"))),)]


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
    first, second = read_samples("conversation", write(folder / "i.json", records), str(folder))
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
    (sample,) = read_samples("conversation", write(folder / "i.json", [record]), str(folder))
    assert [s.content.name for t in sample for s in t.human if isinstance(s, Input)] == ["0.png", "1.png", "2.png"]
    assert sample[0].assistant == ("two.", Output("image", "a"))
    assert sample[1].assistant == ("three", Output("image", "b"), Output("image", "c"))


@pytest.mark.parametrize(
    "task, records, message",
    [
        ("captioning", {"caption": "a"}, "should be a list"),
        ("captioning", [], "should be a list"),
        (
            "captioning",
            [{"caption": "a", "image_name": "0.png"}, {"caption": "a"}],
            "record 1: needs one of image_name, video_name",
        ),
        ("conversation", [{"conversations": [{"from": "gpt", "value": "hi"}]}], "record 0: turns should alternate"),
        (
            "conversation",
            [{"conversations": [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "x"}]}],
            "record 0: the prompt has 1 <image> mark but 0 images",
        ),
        (
            "conversation",
            [{"conversations": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "<image>"}]}],
            "record 0: no caption",
        ),
        ("conversation", [{"conversations": []}], "record 0: turns should alternate"),
        ("conversation", [{"conversations": TALK, "image_captions": [5]}], "record 0: image_caption should be a text"),
    ],
)
def test_malformed_files(folder, task, records, message):
    with pytest.raises(UserError, match=message):
        read_samples(task, write(folder / "bad.json", records), str(folder))


def test_media_without_placeholders_are_not_dropped(folder):
    talk = [{"from": "human", "value": "what?"}, {"from": "gpt", "value": "x"}]
    path = write(folder / "i.json", [{"conversations": talk, "input_image": "0.png"}])
    with pytest.raises(UserError, match="record 0: more image files or captions than <image> placeholders"):
        read_samples("conversation", path, str(folder))


def test_a_missing_or_broken_file(folder):
    with pytest.raises(UserError, match="no such file"):
        read_samples("captioning", str(folder / "none.json"), "")
    (folder / "broken.json").write_text("[{")
    with pytest.raises(UserError, match="not valid JSON"):
        read_samples("captioning", str(folder / "broken.json"), "")


def test_several_files_are_mixed(folder):
    one = write(folder / "one.json", [{"caption": "a", "image_name": "1.png"}])
    two = write(folder / "two.json", [{"caption": "b", "audio_name": "x.wav"}])
    first, second = read_samples("generation", f"{one},{two}", "")
    assert first[0].assistant[1] == Output("image", "a") and second[0].assistant[1] == Output("audio", "b")
